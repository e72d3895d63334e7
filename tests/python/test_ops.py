"""The operators against torch and NumPy, and against torch's own checks of operators."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import fastseq as fs
from fastseq.nn import ops
from fastseq.nn.ops import pack, pack_checked, sum_of_squares, unpack

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
native = torch.ops.fastseq


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def packed_by_numpy(arrays: list[np.ndarray], alignment: int, scale: float) -> np.ndarray:
    item = arrays[0].itemsize
    unit = 1 if alignment == 1 else alignment // item
    parts = []
    for array in arrays:
        parts.append(array.ravel() * np.asarray(scale, array.dtype))
        parts.append(np.zeros(-array.size % unit, array.dtype))
    return np.concatenate(parts)


shapes = st.lists(
    st.sampled_from([(0,), (1,), (3,), (2, 5), (16,), (17,), (4, 1, 9), ()]), min_size=1, max_size=9
)


@given(
    shapes,
    st.sampled_from([1, 64]),
    st.sampled_from([1.0, -0.5]),
    st.sampled_from([np.float32, np.float64]),
)
def test_pack_is_concatenation(sizes, alignment, scale, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size).astype(dtype) for size in sizes]
    flat = pack([torch.from_numpy(np.asarray(a)) for a in arrays], alignment, scale)
    np.testing.assert_array_equal(flat.numpy(), packed_by_numpy(arrays, alignment, scale))
    pieces = unpack(flat, [a.size for a in arrays], alignment, 1 / scale)
    for piece, array in zip(pieces, arrays, strict=True):
        np.testing.assert_array_equal(piece.numpy(), array.ravel())


@pytest.mark.parametrize("to", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [1, 64])
def test_pack_checked_is_pack_cast_and_looked_at(dtype, to, alignment):
    tensors = [torch.randn(shape).to(dtype) for shape in ((3, 5), (0,), (5000,), (2, 2, 4100))]
    flat, facts = pack_checked([t.mT if t.dim() > 1 else t for t in tensors], alignment, 0.5, to)
    scaled = [(t.mT if t.dim() > 1 else t).reshape(-1) * 0.5 for t in tensors]
    wanted = pack([t.to(to) for t in scaled], alignment)
    torch.testing.assert_close(flat, wanted, rtol=0, atol=0)
    squares = float(wanted.double().square().sum())
    assert facts.tolist() == pytest.approx([1.0, squares], rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_pack_checked_notices_what_is_not_finite(dtype, bad):
    tensors = [torch.ones(10_000, dtype=dtype) for _ in range(3)]
    tensors[1][-1] = bad
    flat, facts = pack_checked(tensors)
    assert facts[0] == 0
    assert torch.equal(flat.isfinite(), torch.cat(tensors).isfinite())


def test_pack_checked_casts_to_infinity_and_says_so():
    _, facts = pack_checked([torch.full((3,), 1e6)], dtype=torch.float16)
    assert facts[0] == 0


def test_pack_checked_gives_the_same_bits_on_any_number_of_threads():
    tensors = [torch.randn(300_001), torch.randn(77)]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(pack_checked(tensors, scale=0.3)[1])
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_pack_checked_refuses_nonsense_and_passes_opcheck():
    with pytest.raises(ValueError, match="at least one tensor"):
        pack_checked([])
    with pytest.raises(RuntimeError, match="must be float16"):
        pack_checked([torch.ones(3, dtype=torch.int64)])
    flat, facts = torch.empty(7), torch.empty(2, dtype=torch.float64)
    args = (flat, facts, [torch.ones(3), torch.ones(2, 2)], 1, 0.5)
    opcheck(native.pack_checked_.default, args)
    with pytest.raises(RuntimeError, match="contiguous vector of length 7"):
        native.pack_checked_(torch.empty(6), *args[1:])
    with pytest.raises(RuntimeError, match="two float64"):
        native.pack_checked_(flat, torch.empty(2), *args[2:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_of_squares_is_exact_to_fp64_and_the_same_on_any_number_of_threads(dtype):
    shapes = (300_001,), (0,), (7, 11), (), (3,)
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    tensors.append(torch.randn(50, 20).to(dtype).t()[::2])
    wanted = torch.nn.utils.get_total_norm([t.double() for t in tensors])
    before = torch.get_num_threads()
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(sum_of_squares(tensors))
    torch.set_num_threads(before)
    (squares,) = found
    assert squares**0.5 == pytest.approx(float(wanted), rel=1e-12)


def test_sum_of_squares_holds_what_squares_in_fp32_do_not():
    assert sum_of_squares([torch.full((4,), 1e30)]) == pytest.approx(4e60, rel=1e-6)
    assert sum_of_squares([torch.full((4,), 1e-30)]) == pytest.approx(4e-60, rel=1e-6)
    assert sum_of_squares([torch.tensor([1.0, float("inf")])]) == float("inf")
    assert np.isnan(sum_of_squares([torch.tensor([1.0, float("nan")])]))


def test_sum_of_squares_leaves_to_torch_what_it_cannot_take():
    one = torch.ones(2)
    assert sum_of_squares([]) == 0
    for other in (one.double(), one.to_sparse(), one.to("meta")):
        assert sum_of_squares([one, other]) is None
        assert sum_of_squares([other, one]) is None
    for odd in (one.int(), one.to(torch.complex64)):
        assert sum_of_squares([odd]) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pack_of_many_long_strided_tensors(dtype):
    tensors = [torch.randn(700, 501).to(dtype).t(), torch.randn(3, 2, 100_003).to(dtype)[:, ::2]]
    expected = torch.cat([t.reshape(-1) for t in tensors])
    assert torch.equal(pack(tensors), expected)
    assert torch.equal(pack(tensors, scale=0.5), expected * 0.5)
    back = unpack(expected, [t.numel() for t in tensors], 1, 2.0)
    assert torch.equal(back[1], expected[-back[1].numel() :] * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_scaling_of_16_bit_numbers_rounds_once_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    scaled = pack([every], scale=1 / 3)
    torch.testing.assert_close(
        scaled, (every.float() * torch.tensor(1 / 3)).to(dtype), rtol=0, atol=0, equal_nan=True
    )


def test_pack_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="at least one"):
        pack([])
    with pytest.raises(RuntimeError, match="dtype"):
        pack([torch.ones(1), torch.ones(1, dtype=torch.float64)])
    with pytest.raises(RuntimeError, match="float16, bfloat16, float32 or float64"):
        pack([torch.ones(1, dtype=torch.int32)])
    with pytest.raises(RuntimeError, match="length 4"):
        unpack(torch.ones(3), [4])


@given(
    st.integers(0, 5), st.integers(0, 19), st.integers(0, 19), st.integers(0, 19),
    st.sampled_from(DTYPES), st.booleans(), st.booleans(),
)  # fmt: skip
def test_bmm_is_torchs(batch, m, k, n, dtype, a_transposed, b_transposed):
    def operand(rows, columns, transposed):
        shape = (batch, columns, rows) if transposed else (batch, rows, columns)
        matrix = torch.randint(-8, 9, shape).to(dtype)
        return matrix.mT if transposed else matrix

    a, b = operand(m, k, a_transposed), operand(k, n, b_transposed)
    expected = (a.double() @ b.double()).to(dtype)  # small integers: exact in every dtype
    assert torch.equal(native.bmm(a, b), expected)
    assert torch.equal(fs.bmm(a, b), expected)


def test_bmm_reads_strided_and_broadcast_operands_where_they_lie():
    a = torch.randn(7, 9, 11, dtype=torch.float64)[:, ::2, 1::3]
    b = torch.randn(1, 4, 6, dtype=torch.float64).expand(7, 4, 6)
    torch.testing.assert_close(native.bmm(a, b), a @ b, rtol=1e-14, atol=1e-14)


def test_bmm_of_many_matrices_takes_its_own_kernel(monkeypatch):
    monkeypatch.setattr(torch, "bmm", None)
    a, b = torch.randn(20_000, 4, 4), torch.randn(20_000, 4, 4)
    torch.testing.assert_close(fs.bmm(a, b), torch.einsum("bij,bjk->bik", a, b))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3, 4), r"\(2, 3\)"),
        (torch.ones(2, 3, 4), torch.ones(3, 4, 5), r"\(3, 4, 5\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 5, 4), r"\(2, 5, 4\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 4, 5).double(), "torch.float64"),
    ],
)
def test_bmm_refuses_what_does_not_fit(a, b, message):
    with pytest.raises(ValueError, match=message):
        fs.bmm(a, b)


def test_bmm_under_autocast_is_torchs():
    a, b = torch.randn(600, 4, 4), torch.randn(600, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert fs.bmm(a, b).dtype == torch.bfloat16


CASES = {
    "pack": (native.pack, lambda: ([doubles(3, 2), doubles(5), doubles(0)], 64, 2.0)),
    "unpack": (native.unpack, lambda: (doubles(16), [6, 5, 0], 64, 2.0)),
    "bmm": (native.bmm, lambda: (doubles(6, 3, 2), doubles(6, 2, 4))),
}


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch 2.14's own
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    op, make = CASES[name]
    opcheck(op, make())


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_gradients(check):
    tensors = (doubles(3, 2), doubles(5), doubles(0))
    assert check(lambda *parts: pack(parts, 64, 2.0), tensors)
    assert check(lambda flat: tuple(unpack(flat, [6, 5, 0], 64, 2.0)), (doubles(16),))
    assert check(native.bmm, (doubles(6, 3, 2), doubles(6, 2, 4)))
    assert check(fs.bmm, (doubles(2, 3, 3), doubles(2, 3, 3)))


def test_compiles_into_one_graph():
    def step(a, b):
        return pack([fs.bmm(a, b), a], scale=2.0).sum() + unpack(b.flatten(), [b.numel()])[0].sum()

    a, b = (torch.randn(1000, 4, 4, requires_grad=True) for _ in "ab")
    expected = torch.autograd.grad(step(a, b), (a, b))
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(a, b), (a, b))
    torch.testing.assert_close(got, expected)


def test_exports_with_dynamic_batch():
    class Product(torch.nn.Module):
        def forward(self, a, b):
            return native.bmm(a, b)

    batch = torch.export.Dim("batch")
    shapes = {"a": {0: batch}, "b": {0: batch}}
    program = torch.export.export(
        Product(), (torch.ones(600, 4, 4), torch.ones(600, 4, 4)), dynamic_shapes=shapes
    )
    a, b = torch.randn(77, 4, 4), torch.randn(77, 4, 4)
    torch.testing.assert_close(program.module()(a, b), a @ b)


def loaded_with(isa):
    code = "import fastseq as fs; print(fs.info()['kernels']['cpu'])"
    env = os.environ | {"FASTSEQ_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_kernels_are_held_to_the_instruction_set_of_the_environment():
    assert loaded_with("baseline").stdout.strip() == "baseline"
    isas = ["baseline", "x86-64-v3", "x86-64-v4"]
    wanted = os.environ.get("FASTSEQ_ISA", "x86-64-v4")
    assert isas.index(ops.active_isa) <= isas.index(wanted)
    assert "FASTSEQ_ISA must be one of baseline, x86-64-v3, x86-64-v4, got 'avx2'" in (
        loaded_with("avx2").stderr
    )
