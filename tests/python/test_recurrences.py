"""The operators lstm, gru and rnn against torch's layers, and against torch's checks of operators."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cells import LAYERS, NAMES, by_torch, gradients, laid_out, operands, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

native = torch.ops.fastseq
CELLS = pytest.mark.parametrize("cell", LAYERS)

LAYOUTS = ["unaligned", "sequences first", "features first", "strided", "expanded", "contiguous"]


@dataclass
class Case:
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    bias: bool
    reverse: bool
    lengths: list[int] | None
    layout: str
    grads_layout: str
    wanted: set[str]
    used: set[int]


@st.composite
def cases(draw):
    steps = draw(st.sampled_from([0, 1, 2, 3, 7]))
    count = draw(st.sampled_from([0, 1, 2, 5, 14]))
    shape = (steps, count, draw(st.integers(1, 19)), draw(st.integers(1, 37)))
    lengths = st.lists(st.integers(0, steps), min_size=count, max_size=count)
    return Case(
        shape,
        draw(st.sampled_from([torch.float64, torch.float32])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.none() | lengths),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sets(st.sampled_from(NAMES)) | st.just(set(NAMES))),
        draw(st.sets(st.integers(0, 2), min_size=1) | st.just({0, 1, 2})),
    )


@CELLS
@settings(max_examples=120)
@given(case=cases())
def test_is_torchs_layer(cell, case):
    given_ = operands(cell, *case.shape, dtype=case.dtype, bias=case.bias)
    given_["x"] = laid_out(given_["x"].detach(), case.layout)
    for name, a in given_.items():
        if a is not None:
            a.requires_grad_(name in case.wanted)
    inputs = list(given_.values())
    same = [a if a is None else a.detach().double().requires_grad_(a.requires_grad) for a in inputs]
    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int64)
    if lengths is not None and case.layout != "expanded":
        beyond = torch.arange(case.shape[0])[:, None] >= lengths
        with torch.no_grad():
            inputs[0].masked_fill_(beyond[:, :, None], torch.nan)
    found = run(cell, inputs, lengths, case.reverse)
    expected = by_torch(cell, same, lengths, case.reverse)
    tight = case.dtype == torch.float64
    close = {"rtol": 0, "atol": 1e-12 if tight else 2e-5, "check_dtype": False}
    torch.testing.assert_close(list(found), expected, **close)
    assert found[0].is_contiguous()
    assert all(a.dtype == case.dtype for a in found)

    cotangents = [torch.randn_like(o) if i in case.used else None for i, o in enumerate(expected)]
    own = [
        None if g is None else laid_out(g, case.grads_layout).to(case.dtype) for g in cotangents
    ]  # fmt: skip
    cotangents = [None if g is None else g.double() for g in own]
    close = {
        "rtol": 1e-10 if tight else 1e-4,
        "atol": 1e-10 if tight else 2e-4,
        "check_dtype": False,
    }
    torch.testing.assert_close(
        list(gradients(found, inputs, own)), list(gradients(expected, same, cotangents)), **close
    )
    with torch.no_grad():
        again = run(cell, inputs, lengths, case.reverse)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@CELLS
@pytest.mark.parametrize(
    ("lengths", "reverse"),
    [
        (None, False),
        ([4, 0, 2], True),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param([4, 0, 2], False, marks=pytest.mark.slow),
    ],
)
def test_derivatives_against_difference_quotients(cell, lengths, reverse):
    inputs = list(operands(cell, 4, 3, 2, 3).values())
    if lengths is not None:
        lengths = torch.tensor(lengths)
        with torch.no_grad():
            inputs[0][2:, 1:] = torch.nan  # beyond the lengths
    x, *rest = inputs
    seen = x.detach()[:2].requires_grad_()  # what is not NaN

    def function(first, *others):
        return run(cell, [torch.cat([first, x.detach()[2:]]), *others], lengths, reverse)

    assert gradcheck(function, (seen, *rest))
    assert gradgradcheck(function, (seen, *rest))


@CELLS
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["whole", "lengths"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_second_derivatives_are_torchs(cell, lengths, reverse):
    """Difference quotients of a gradient do not see whether that gradient is right."""
    lengths = None if lengths is None else torch.tensor(lengths)
    inputs = list(operands(cell, 4, 3, 2, 3).values())
    draws = torch.Generator()

    def derivatives(function):
        draws.manual_seed(1)
        outputs = function(cell, inputs, lengths, reverse)
        loss = sum((o * torch.randn(o.shape, generator=draws)).sum() for o in outputs)
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return first, torch.autograd.grad(penalty, inputs)

    torch.testing.assert_close(derivatives(run), derivatives(by_torch), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch 2.14's own
@CELLS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_opcheck(cell, bias):
    op = getattr(native, cell if cell in ("lstm", "gru") else "rnn").default
    inputs = list(operands(cell, 4, 3, 2, 8, bias=bias).values())
    plain = [a if a is None else a.detach() for a in inputs]
    last = [cell == "relu"] if cell in ("tanh", "relu") else [True]
    opcheck(op, (*inputs, None, True, *last))
    # What is kept for backward is not defined beyond the lengths: here nothing is kept.
    unsaved = [cell == "relu"] if cell in ("tanh", "relu") else [False]
    opcheck(op, (*plain, torch.tensor([4, 0, 3]), False, *unsaved))
    y, h, *more = op(*plain, None, False, *last)
    kept = (plain[5], plain[6] if cell == "lstm" else None, None, False, y, more[-1] if more else None)  # fmt: skip
    dy, dh = torch.randn_like(y), torch.randn_like(h)
    for need in (True, False):
        args = (list(LAYERS).index(cell), dy, dh, None, *plain[:3], bias, *kept, True, need, need)
        opcheck(native.recurrence_backward.default, args)


@CELLS
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["whole", "lengths"])
def test_compiled_into_one_graph(cell, lengths):
    torch._dynamo.reset()
    lengths = None if lengths is None else torch.tensor(lengths)
    inputs = list(operands(cell, 4, 3, 2, 3).values())
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(cell, inputs, lengths, True), run(cell, inputs, lengths, True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for used in ({0, 1, 2}, {0}):
        grads = [torch.randn_like(o) if i in used else None for i, o in enumerate(expected)]
        found, expected = compiled(cell, inputs, lengths, True), run(cell, inputs, lengths, True)
        torch.testing.assert_close(
            gradients(found, inputs, grads), gradients(expected, inputs, grads), rtol=0, atol=0
        )


@CELLS
def test_the_same_bits_on_any_number_of_threads(cell):
    before = torch.get_num_threads()
    inputs = list(operands(cell, 40, 300, 5, 32, torch.float32).values())
    cotangents = [torch.randn_like(o) for o in run(cell, inputs)]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs = run(cell, inputs)
            results.append([*outputs, *gradients(outputs, inputs, cotangents)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@CELLS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_where_torch_lets_it(cell, bad):
    for name in operands(cell):
        inputs = operands(cell, 6, 5, 3, 19, torch.float32)
        with torch.no_grad():
            index = (2, 1, 0) if name == "x" else (0,) * (inputs[name].dim() - 1) + (1,)
            inputs[name][index] = bad
        inputs = list(inputs.values())
        found, expected = run(cell, inputs), by_torch(cell, inputs)
        cotangents = [torch.randn_like(o) for o in expected]
        found = [*found, *gradients(found, inputs, cotangents)]
        expected = [*expected, *gradients(expected, inputs, cotangents)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@CELLS
@pytest.mark.parametrize("scale", [1e-30, 30.0, 1e4])
def test_saturated_and_tiny_values(cell, scale):
    inputs = operands(cell, 4, 3, 5, 9, torch.float32)
    with torch.no_grad():
        inputs["x"].mul_(scale)
        inputs["w_hh"].mul_(0.1)
    inputs = list(inputs.values())
    found, expected = run(cell, inputs), by_torch(cell, inputs)
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-5)


@CELLS
def test_many_short_chunks_are_a_long_one(cell):
    x, *rest = operands(cell, 23, 6, 3, 21).values()
    weights, state = rest[:4], rest[4:]
    whole = run(cell, [x, *weights, *state])
    parts = []
    ends = state
    for chunk in x.split(5):
        y, *ends = run(cell, [chunk, *weights, *ends])
        parts.append(y)
    chunked = [torch.cat(parts), *ends]
    torch.testing.assert_close(chunked, list(whole), rtol=0, atol=1e-14)
    inputs, cotangents = [x, *weights, *state], [torch.randn_like(o) for o in whole]
    torch.testing.assert_close(
        gradients(chunked, inputs, cotangents), gradients(whole, inputs, cotangents)
    )


BAD = [
    *[(name, lambda t: t.to("meta"), "device") for name in NAMES],
    *[(name, lambda t: t.float(), "dtype") for name in NAMES],
    *[(name, lambda t: t.unsqueeze(0), "must be") for name in NAMES],
    *[(name, lambda t: t[..., :-1], "must be") for name in NAMES],
    ("b_ih", lambda _: None, "must both be given"),
    ("b_hh", lambda _: None, "must both be given"),
    ("x", lambda t: t.half(), "float"),
    ("x", lambda t: t.long(), "float"),
]


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_what_does_not_fit_is_named(cell, grad):
    for name, change, message in BAD:
        inputs = operands(cell)
        if name not in inputs:
            continue
        inputs[name] = change(inputs[name].detach())
        # What is said of x is said of the first that is not like it; a narrow w_hh is of fewer units.
        named = r"\w+" if name in ("x", "w_hh") else name
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(RuntimeError, match=f"{named}.* {message}"),
        ):
            run(cell, list(inputs.values()))


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
@pytest.mark.parametrize(
    "lengths",
    [[5, 6, 0], [-1, 2, 3], [5, 2], 5, [[5, 2, 3]], [5.0, 2.0, 3.0], torch.tensor([5, 2, 3]).to("meta"), torch.tensor([5, 2, 3]).int()],
    ids=str,
)  # fmt: skip
def test_lengths_that_do_not_fit(cell, lengths):
    inputs = list(operands(cell).values())
    with pytest.raises(RuntimeError, match="lengths must"):
        run(cell, inputs, torch.as_tensor(lengths))
