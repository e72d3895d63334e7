"""Single steps in C++ beside those by torch, for drawn models, and after everything that may change between two."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.inference.native_time_steps import NativeTimeSteps

FEATURES = 3
N = 2


@pytest.fixture(autouse=True)
def natively(monkeypatch):
    """Count the steps that are run in C++."""
    counts = []
    real = NativeTimeSteps.run

    def counted(self, x, state):
        y = real(self, x, state)
        counts.append(y is not None)
        return y

    monkeypatch.setattr(NativeTimeSteps, "run", counted)
    return counts


class ByTorch:
    """Runs steps of a copy of an estimator by torch."""

    def __init__(self, est: Any) -> None:
        self.est = copy.deepcopy(est)
        self.est._predictor._native.run = lambda x, state: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.est, name)


def drawn_model(rng: random.Random) -> nn.Module:
    layers: list[nn.Module] = []
    width = FEATURES
    for _ in range(rng.randint(0, 2)):
        layers.append(nn.Linear(width, size := rng.choice([1, 5, 17]), bias=rng.random() < 0.8))
        layers.append(rng.choice([nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout])())
        width = size
    if rng.random() < 0.8:
        kind = rng.choice([fs.nn.LSTM, fs.nn.GRU, fs.nn.RNN, nn.LSTM, nn.GRU, nn.RNN])
        hidden, count = rng.choice([1, 4, 10, 19]), rng.choice([1, 1, 2, 3])
        dropout = 0.5 if count > 1 else 0.0
        layers.append(kind(width, hidden, count, bias=rng.random() < 0.8, dropout=dropout))
        width = hidden
    layers.append(nn.Linear(width, rng.choice([1, 2])))
    return layers[0] if len(layers) == 1 else fs.nn.Chain(*layers)


def estimator(model: nn.Module | None = None, **spec: Any) -> Any:
    model = model or fs.nn.Chain(nn.LSTM(FEATURES, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    return fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.SGD,
        {"epochs": 1, "batchsize": 4, "seqsize": 5, **spec}, progress=False, device="cpu",
        seed=0,
    )  # fmt: skip


def stepped(model: nn.Module | None = None, **spec: Any) -> tuple[Any, ByTorch]:
    """Return an estimator whose next step runs in C++, and one like it by torch."""
    torch.manual_seed(0)
    est = estimator(model, **spec)
    est.step(torch.randn(N, FEATURES))
    return est, ByTorch(est)


def assert_close(a: Any, b: Any) -> None:
    if a is None or b is None:
        assert a is b is None
    elif isinstance(a, tuple):
        assert isinstance(b, tuple)
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_close(one, other)
    else:
        rounding = 1e-12 if b.dtype == torch.float64 and a.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)


def assert_same_step(est: Any, by_torch: ByTorch, x: Any = None) -> None:
    x = torch.randn(N, FEATURES, dtype=torch.float64) if x is None else x
    y, wanted = est.step(x), by_torch.step(x)
    assert y.shape == wanted.shape
    assert y.dtype == wanted.dtype
    rounding = 1e-12 if next(est.model.parameters()).dtype == torch.float64 else 1e-5
    scaling = None if est.scaling_ is None else est.scaling_.y
    size = 1.0 if scaling is None else max(1.0, float(scaling.scale.max()))
    torch.testing.assert_close(y, wanted, rtol=rounding, atol=rounding * size)
    assert_close(est.get_state(), by_torch.get_state())


@pytest.mark.parametrize("seed", range(40))
def test_drawn_models_step_as_by_torch(seed, natively):
    rng = random.Random(seed)  # noqa: S311
    torch.manual_seed(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    scale = rng.choice([None, "standard", "robust"]), rng.choice([None, "standard"])
    est = estimator(
        drawn_model(rng).to(dtype), scale_x=scale[0], scale_y=scale[1],
        nan=rng.choice(["raise", "mask", "keep"]),
    )  # fmt: skip
    outputs = list(est.model.parameters())[-1].shape[0]
    data = torch.randn(20, 6, FEATURES, dtype=rng.choice([torch.float32, torch.float64])) * 3 + 1
    y = data[..., :1].expand(20, 6, outputs) * 50 + 7
    if scale != (None, None):
        est.fit(data, y[..., 0] if outputs == 1 and rng.random() < 0.5 else y)
    est.model.train(rng.random() < 0.5)
    by_torch = ByTorch(est)
    n = rng.choice([1, 2, 5, 33])
    for _ in range(60):
        x = torch.randn(n, FEATURES, dtype=rng.choice([torch.float32, torch.float64])) * 3 + 1
        x = x.numpy() if rng.random() < 0.5 else x
        what = rng.random()
        if what < 0.03:
            chunk, reset = torch.randn(4, n, FEATURES), rng.random() < 0.5
            a, b = (e.predict(chunk, reset=reset) for e in (est, by_torch))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        elif what < 0.06:
            state = by_torch.get_state()
            est.set_state(state)
            by_torch.set_state(state)
        elif what < 0.08:
            est.reset_state()
            by_torch.reset_state()
        elif what < 0.1:
            for e in (est, by_torch):
                with torch.no_grad():
                    for p in e.model.parameters():
                        p.mul_(0.9)
        assert_same_step(est, by_torch, x)
    assert sum(natively) > 40


def change_in_place(est):
    with torch.no_grad():
        est.model[0].weight_hh_l0.mul_(3)


def load(est):
    est.model.load_state_dict({k: v + 0.1 for k, v in est.model.state_dict().items()})


def replace_data(est):
    for p in est.model.parameters():
        p.data = p.data * 2


def load_assigned(est):
    state = {k: v.clone() * 2 for k, v in est.model.state_dict().items()}
    est.model.load_state_dict(state, assign=True)


def transpose_data(est):
    with torch.no_grad():
        est.model[2].weight.data = est.model[2].weight.data.flip(0).t().contiguous().t()


def swap_axes_in_place(est):
    est.model[0].weight_hh_l0.data = torch.linspace(-1, 1, 64).view(4, 16)
    with torch.no_grad():
        est.model[0].weight_hh_l0.t_()


def transpose_square(est):
    """Same address, same shape."""
    weight = est.model[2].weight
    weight.data = weight.data.t()


def share_memory(est):
    est.model.share_memory()
    change_in_place(est)


def replace_parameter(est):
    est.model[2].bias = nn.Parameter(torch.tensor([5.0, 6.0]))


def replace_layer(est):
    est.model[2] = nn.Linear(4, 2)
    with torch.no_grad():
        est.model[2].weight.fill_(0.3)
        est.model[2].bias.fill_(0.1)


def to_double(est):
    est.model.double()
    est.reset_state()


def remove_bias(est):
    est.model[2].bias = None


def replace_model(est):
    other = copy.deepcopy(est.model)
    with torch.no_grad():
        other[2].bias.add_(1)
    est.model = other


def hook(est):
    est.model[2].register_forward_hook(lambda module, args, y: y + 1)


def pre_hook(est):
    est.model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))


def own_forward(est):
    layer = est.model[2]
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 7


def other_class(est):
    class Tripled(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    est.model[2].__class__ = Tripled


def parametrize(est):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(est.model[2], "weight", Doubled())


def weights_apart(est):
    """The layer runs with other weights than its parameters."""
    est.model[0]._flat_weights[0] = nn.Parameter(est.model[0].weight_ih_l0.detach() * 2)


def fit(est):
    x = torch.linspace(-1, 1, 60).view(10, 2, 3)
    est.fit(x, x[..., :2])


def fit_scaled(est):
    est.spec = {**vars(est.spec), "scale_x": "standard", "scale_y": "standard"}
    fit(est)


def set_scaling(est):
    one = torch.ones(3, dtype=torch.float64)
    affine = fs.data.scaling.affine.Affine
    est.scaling_ = fs.data.scaling.inputs_and_targets.Scaling(affine(one, 2 * one), None)


def set_state(est):
    est.set_state(((torch.ones(1, N, 4), torch.zeros(1, N, 4)), None, None))


def predict(est):
    est.predict(torch.linspace(-1, 1, 24).view(4, N, 3))


def predict_on(est):
    est.predict(torch.linspace(-1, 1, 24).view(4, N, 3), reset=False)


def evaluate(est):
    x = torch.linspace(-1, 1, 24).view(4, N, 3)
    est.evaluate(x, x[..., :2])


def modes(est):
    est.model.eval()
    est.step(torch.ones(N, FEATURES))
    est.model.train()


CHANGES = [
    change_in_place, load, replace_data, load_assigned, transpose_data, swap_axes_in_place,
    transpose_square, share_memory, replace_parameter, replace_layer, to_double, remove_bias,
    replace_model, hook, pre_hook, own_forward, other_class, parametrize, weights_apart, fit,
    fit_scaled, set_scaling, set_state, predict, predict_on, evaluate, modes,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_step_sees_every_change(change, natively):
    torch.manual_seed(0)
    square = change is transpose_square
    model = fs.nn.Chain(nn.LSTM(FEATURES, 4), nn.Dropout(0.5), nn.Linear(4, 4 if square else 2))
    est, by_torch = stepped(model)
    assert_same_step(est, by_torch)
    assert natively[-1]
    x = torch.randn(N, FEATURES)
    unchanged = copy.deepcopy(est).step(x)
    for e in (est, by_torch.est):
        change(e)
    wanted = copy.deepcopy(by_torch.est).step(x)
    if change not in (evaluate, weights_apart):  # copies of layers go by their parameters
        assert wanted.shape != unchanged.shape or not torch.equal(wanted, unchanged)
    for _ in range(6):
        assert_same_step(est, by_torch)


def test_outputs_lose_their_axis_once_targets_have_none(natively):
    est, _ = stepped(fs.nn.Chain(nn.GRU(FEATURES, 4), nn.Linear(4, 1)))
    x = torch.ones(N, FEATURES)
    assert est.step(x).shape == (N, 1)
    assert natively[-1]
    data = torch.linspace(-1, 1, 60).view(10, N, 3)
    est.fit(data, data[..., 0])
    for _ in range(3):
        assert est.step(x).shape == (N,)
    assert natively[-1]


def test_in_one_shape_at_one_address_axes_are_seen():
    weight = torch.randn(4, 4)
    before = weight.data_ptr(), weight.shape
    weight.data = weight.data.t()
    assert (weight.data_ptr(), weight.shape) == before  # what transpose_square changes


def test_scaling_is_read_not_remembered(natively):
    est, _ = stepped()
    fit_scaled(est)
    for _ in range(3):
        est.step(torch.ones(N, FEATURES))
    assert natively[-1]
    with torch.no_grad():
        est.scaling_.x.center.add_(1)
        est.scaling_.y.scale.mul_(2)
    assert_same_step(est, ByTorch(est))
    assert natively[-1]


def test_a_global_hook_is_called(natively):
    est, _ = stepped()
    x = torch.ones(N, FEATURES)
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda *args: called.append(args))
    try:
        est.step(x)
    finally:
        handle.remove()
    assert called
    assert not natively[-1]


def test_modes_see_operators(natively):
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **(kwargs or {}))

    est, by_torch = stepped()
    x = torch.ones(N, FEATURES)
    with Mode() as mode:
        assert_same_step(est, by_torch, x)
    assert mode.seen
    assert not any(natively)
    est, by_torch = stepped(nn.Linear(FEATURES, 2))
    with torch.autocast("cpu"):
        assert_same_step(est, by_torch, x)
        assert est.step(x).dtype == torch.bfloat16
    assert not any(natively)


def test_inputs_in_transforms_are_left_to_torch(natively):
    est, _ = stepped()
    with pytest.raises((RuntimeError, ValueError)):
        torch.func.vmap(est.step)(torch.randn(3, N, FEATURES))
    assert not any(natively)


def test_states_of_inference_mode(natively):
    torch.manual_seed(0)
    est = estimator()
    by_torch = ByTorch(est)
    x = torch.ones(N, FEATURES)
    with torch.inference_mode():
        for _ in range(3):
            assert torch.is_inference(est.step(x))
            by_torch.step(x)
    assert natively[-1]
    for _ in range(3):
        assert_same_step(est, by_torch, x)
    with torch.inference_mode():
        set_state(est)
        set_state(by_torch)
        assert_same_step(est, by_torch, x)
    assert_same_step(est, by_torch, x)
    assert natively[-1]


BAD = {
    "NaN": np.full((N, FEATURES), np.nan),
    "infinite": torch.full((N, FEATURES), -torch.inf),
    "one NaN": torch.tensor([[0, 0, 0], [0, torch.nan, 0]]),
    "beyond fp32": np.full((N, FEATURES), 1e300),
    "no step": torch.zeros(FEATURES),
    "a chunk": np.zeros((1, N, FEATURES)),
    "other features": torch.zeros(N, FEATURES + 1),
    "other sequences": torch.zeros(N + 1, FEATURES),
    "none": np.zeros((0, FEATURES)),
    "strings": np.full((N, FEATURES), "a"),
    "nothing each": np.zeros((N, FEATURES), "V0"),
    "complex": torch.zeros(N, FEATURES, dtype=torch.complex64),
    "masked": np.ma.masked_array(np.zeros((N, FEATURES)), mask=True),
    "sparse": torch.zeros(N, FEATURES).to_sparse(),
    "meta": torch.zeros(N, FEATURES, device="meta"),
    "None": None,
    "empty": (),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("nan", ["raise", "mask", "keep"])
def test_bad_inputs_raise_what_they_always_do(kind, nan):
    est, by_torch = stepped(nan=nan)
    assert_same_step(est, by_torch)
    errors, results = [], []
    for e in (est, by_torch):
        try:
            results.append(e.step(BAD[kind]))
        except Exception as error:  # noqa: PERF203
            errors.append((type(error), str(error)))
    assert len(errors) in (0, 2)
    assert errors[1:] == errors[:1]
    if results:
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5, equal_nan=True)
    est.reset_state()
    by_torch.reset_state()
    assert_same_step(est, by_torch)
    assert_same_step(est, by_torch)


OTHER = {
    "integers": np.arange(N * FEATURES).reshape(N, FEATURES),
    "half": torch.ones(N, FEATURES, dtype=torch.float16),
    "transposed": torch.randn(FEATURES, N).t(),
    "every second": np.random.default_rng(0).standard_normal((2 * N, 2 * FEATURES))[::2, ::2],
    "other byte order": np.ones((N, FEATURES), ">f8"),
    "unaligned": np.frombuffer(b"a" + bytes(range(48)), np.uint8)[1:]
    .view("f8")
    .reshape(N, FEATURES),
    "read only": np.broadcast_to(np.ones(FEATURES), (N, FEATURES)),
    "list": [[0.5] * FEATURES] * N,
    "with a gradient": torch.ones(N, FEATURES, requires_grad=True),
    "parameter": nn.Parameter(torch.ones(N, FEATURES)),
    "negated": torch.conj(torch.full((N, FEATURES), 1 + 2j)).imag,
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_inputs(kind):
    est, by_torch = stepped()
    for _ in range(3):
        assert_same_step(est, by_torch, OTHER[kind])
        assert_same_step(est, by_torch)


def test_a_negated_view_of_one_number():
    torch.manual_seed(0)
    est = estimator(nn.GRU(1, 2))
    est.step(torch.ones(1, 1))
    by_torch = ByTorch(est)
    x = torch.conj(torch.full((1, 1), 1 + 2j)).imag
    assert x.is_neg()
    assert x.is_contiguous()
    assert_same_step(est, by_torch, x)


def test_outputs_and_states_are_the_users_own(natively):
    est, _ = stepped()
    x = torch.ones(N, FEATURES)
    y, state = est.step(x), est.get_state()
    copies = y.clone(), state[0][0].clone(), state[0][1].clone()
    z = est.step(x)
    assert natively[-1]
    assert not torch.equal(y, z)
    assert torch.equal(y, copies[0])
    assert torch.equal(state[0][0], copies[1])
    assert torch.equal(state[0][1], copies[2])
    est.set_state(state)
    assert_close(est.step(x), z)


def test_copies_go_their_own_ways(natively):
    est, by_torch = stepped()
    x = torch.ones(N, FEATURES)
    assert_same_step(est, by_torch, x)
    other = copy.deepcopy(est)
    for _ in range(3):
        other.step(-x)
    assert natively[-1]
    assert_same_step(est, by_torch, x)


def test_what_is_not_for_cpp_is_asked_rarely(monkeypatch):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(FEATURES, 2)

        def forward(self, x, state=None):
            return self.rnn(x, state)

    asked = []
    from fastseq.inference import native_time_steps

    real = native_time_steps.layers_of
    monkeypatch.setattr(
        native_time_steps, "layers_of", lambda *args: asked.append(0) or real(*args)
    )
    est = estimator(Other())
    for _ in range(200):
        est.step(torch.ones(N, FEATURES))
    assert 2 <= len(asked) <= 10


def test_steps_beside_other_threads():
    """Each step, set_state and get_state is whole, though steps change the state in place."""
    est, _ = stepped()
    x = torch.ones(N, FEATURES)
    stop = threading.Event()
    torn = []

    def look():
        while not stop.is_set():
            now = est.get_state()
            if now is not None:
                expected = now[0][0].abs() <= now[0][1].tanh().abs() + 1e-6  # h = o * tanh(c)
                torn.extend([] if bool(expected.all()) else [now])

    def jump():
        while not stop.is_set():
            est.reset_state()
            est.predict(x.expand(3, N, FEATURES), reset=True)

    threads = [threading.Thread(target=work) for work in (look, jump)]
    for thread in threads:
        thread.start()
    try:
        for k in range(3000):
            est.step(x * (k % 7 - 3))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not torn


def test_training_in_another_thread_is_busy():
    est, _ = stepped()
    x = torch.ones(N, FEATURES)
    inside, done = threading.Event(), threading.Event()

    class Wait(fs.callbacks.Callback):
        def on_epoch_end(self, run):  # noqa: ARG002
            inside.set()
            assert done.wait(30)

    est.callbacks.append(Wait())
    thread = threading.Thread(target=fit, args=(est,))
    thread.start()
    try:
        assert inside.wait(30)
        with pytest.raises(fs.BusyError, match="another thread trains this model"):
            est.step(x)
    finally:
        done.set()
        thread.join()
