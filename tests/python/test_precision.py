"""Mixed precision beside plain PyTorch loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq._util.tree import tree_leaves
from fastseq.checkpoint import session
from fastseq.training import fit, native_step
from fastseq.training.amp import Precision
from fastseq.training.loop import Trainer

X = torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(0))
Y = X.mean(2, keepdim=True)


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def fitted(amp, loss=mse_loss, **spec):
    est = fs.Estimator(
        new_model(), fs.seqloss(loss), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        {"epochs": 3, "batchsize": 6, "seqsize": 10, "clip_norm": 0.5} | spec,
        amp=amp, progress=False, comm=None,
    )  # fmt: skip
    return est.fit(X, Y)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_steps_by_torch_are_those_of_autocast_and_scaler(amp, dtype, monkeypatch):
    monkeypatch.setattr(fit, "_trainer_for", lambda learner: Trainer)
    est = fitted(amp)
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", enabled=amp == "fp16")
    for _ in range(3):
        for t in range(0, 40, 10):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = mse_loss(model(X[t : t + 10]), Y[t : t + 10])
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
    exact = fitted(None).model
    for a, b, c in zip(est.model.parameters(), model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.dtype == torch.float32
        assert not torch.equal(a, c)
        torch.testing.assert_close(a, c, rtol=0.1, atol=0.02)


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_falls():
    huge = 2.0**14

    def loss(y, target, reduction="mean"):
        return huge * mse_loss(y, target, reduction=reduction)

    est = fitted("fp16", loss, epochs=1, seqsize=40)
    start = new_model()
    for a, b in zip(est.model.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b)  # 2^14 · 2^16 is more than fp16 can hold
    assert est._learner.precision.state_dict()["scale"] == 2.0**15
    est.fit(X, Y, epochs=20)
    assert est.history_[-1]["loss"] < est.history_[0]["loss"]


def test_recurrent_layers_and_predictions():
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.LSTM(4, 8), nn.Linear(8, 1))
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.AdamW(p, lr=1e-2),
        {"epochs": 5, "batchsize": 3, "seqsize": 10}, amp="bf16", progress=False, comm=None,
    )  # fmt: skip
    est.fit(X, Y)
    assert est.history_[-1]["loss"] < est.history_[0]["loss"]
    with torch.no_grad():
        expected, _ = model(X)
    # in full precision; the library's products over other shapes round differently
    torch.testing.assert_close(torch.from_numpy(est.predict(X)), expected, rtol=1e-6, atol=1e-6)


class RoundedProduct(torch.autograd.Function):
    """``a @ w.T``, and its gradients, of factors that are rounded to bf16."""

    @staticmethod
    def forward(ctx, a, w):
        a, w = a.bfloat16().float(), w.bfloat16().float()
        ctx.save_for_backward(a, w)
        return a @ w.T

    @staticmethod
    def backward(ctx, g):
        a, w = ctx.saved_tensors
        g = g.bfloat16().float()
        return g @ w, g.T @ a


def exact_product(a, w):
    return a @ w.T


def outputs_of(model, x, product):
    """Return the outputs of an LSTM and two linear layers; the last, which is small, is exact."""
    lstm, linear, last = model
    w_ih, w_hh, b_ih, b_hh = lstm.parameters()
    h = c = x.new_zeros(x.shape[1], lstm.hidden_size)
    outputs = []
    for inputs in x:
        gates = product(inputs, w_ih) + product(h, w_hh) + b_ih + b_hh
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(last(product(h, linear.weight) + linear.bias))
    return torch.stack(outputs)


def layers():
    torch.manual_seed(0)
    return fs.nn.Chain(fs.nn.LSTM(4, 37), nn.Linear(37, 33), nn.Linear(33, 1))


# AdamW divides by gradients, so that roundings of those near zero count.
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-2),
}


def trained_by_loop(product, optimizer):
    model = layers()
    is_plain = optimizer == "sgd"
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(8):
        # An update that makes an optimizer's state is by torch, and exact.
        first = not optimizer.state and not is_plain
        optimizer.zero_grad()
        mse_loss(outputs_of(model, X, exact_product if first else product), Y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained_by_fit(amp, optimizer, **spec):
    model = layers()
    fs.Estimator(
        model, fs.seqloss(mse_loss), OPTIMIZERS[optimizer],
        {"epochs": 8, "batchsize": 6, "seqsize": 40} | spec, amp=amp, progress=False, comm=None,
    ).fit(X, Y)  # fmt: skip
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_in_cpp_round_the_factors_of_products(optimizer, monkeypatch, natively):
    monkeypatch.setattr(native_step, "has_bf16", lambda: True)
    wanted = trained_by_loop(RoundedProduct.apply, optimizer)
    exact = trained_by_loop(exact_product, optimizer)
    found = trained_by_fit("bf16", optimizer)
    assert natively
    # What is near the middle of two bf16 numbers may be rounded to either.
    assert (found - wanted).norm() < 0.1 * (exact - wanted).norm()


@pytest.mark.parametrize("spec", [{}, {"accumulate": 2, "seqsize": 10}], ids=["", "accumulate"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_in_cpp_are_in_single_precision_without_instructions_for_bf16(
    optimizer, spec, monkeypatch, natively
):
    monkeypatch.setattr(native_step, "has_bf16", lambda: False)
    rounded, exact = (trained_by_fit(amp, optimizer, **spec) for amp in ("bf16", None))
    assert torch.equal(rounded, exact)
    assert natively


def forecaster():
    return fs.SequenceForecaster(
        horizon=6, hidden_size=40, lags=36, epochs=2, validation=0, amp="bf16", random_state=0
    )


def forecast(own):
    return own.fit(X[:, :, 0].cumsum(0).numpy()).predict()


def classified(own):
    model = fs.SequenceClassifier(
        own, hidden_size=40, amp="bf16", epochs=2, random_state=0, early_stopping=False
    )
    samples = X.repeat(1, 8, 1).swapaxes(0, 1).numpy()
    return model.fit(samples, samples[:, -1, 0] > 0).decision_function(samples)


@pytest.mark.filterwarnings("ignore:the weights were updated only")
@pytest.mark.parametrize(
    "outputs",
    [
        lambda: forecast(forecaster()),
        lambda: forecast(forecaster().set_params(ensemble=2)),
        lambda: classified("gru"),
    ],
    ids=["segrnn", "members", "pooled"],
)
def test_layers_inside_others_round_too(outputs, monkeypatch, natively):
    found = []
    for has in (False, True, True):
        monkeypatch.setattr(native_step, "has_bf16", lambda has=has: has)
        found.append(torch.as_tensor(outputs()))
    assert natively
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[1], rtol=0.1, atol=0.1)


def test_a_run_that_resumes_with_other_instructions_warns(tmp_path, monkeypatch):
    def fit(epochs):
        est = fs.Estimator(
            layers(), fs.seqloss(mse_loss), OPTIMIZERS["adamw"],
            {"epochs": epochs, "batchsize": 6, "seqsize": 40}, amp="bf16", seed=0,
            progress=False, comm=None,
        )  # fmt: skip
        est.fit(X, Y, checkpoint=tmp_path / "run", resume="auto")

    monkeypatch.setattr(session, "has_bf16", lambda: True)
    fit(1)
    monkeypatch.setattr(session, "has_bf16", lambda: False)
    with pytest.warns(UserWarning, match="kernels"):
        fit(2)


@pytest.mark.parametrize(
    ("has", "how"),
    [
        (True, "with products of large layers in bf16"),
        (False, "in fp32, as the processor has no instructions for bf16"),
    ],
)
def test_info_says_what_products_are_in(has, how, monkeypatch):
    monkeypatch.setitem(fs.info.__globals__, "has_bf16", lambda: has)
    assert fs.info(fitted("bf16"))["updates"] == f"in C++, several at a time, {how}"


def test_double_precision_is_not_ignored():
    with pytest.raises(ValueError, match="amp='bf16' needs a model in float32, got one in float64"):
        fs.Estimator(
            new_model().double(), fs.seqloss(mse_loss), torch.optim.SGD,
            {"epochs": 1, "batchsize": 6, "seqsize": 10}, amp="bf16", comm=None,
        )  # fmt: skip


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match='amp must be None, "bf16" or "fp16", got \'int8\''):
        fitted("int8")


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, fs.nn.LSTM])
def test_validation_continues_in_full_precision_from_states_in_half(layer, amp, monkeypatch):
    if layer is nn.LSTM and (amp == "fp16" or not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return  # PyTorch's own has no fp16 on CPUs, and bf16 only with AVX-512
    monkeypatch.setattr(fit, "_trainer_for", lambda learner: Trainer)
    torch.manual_seed(0)
    states = []

    class Model(fs.nn.Chain):
        def forward(self, x, state):
            if not self.training:
                states.extend(tree_leaves(state))
            return super().forward(x, state)

    est = fs.Estimator(
        Model(layer(4, 5), nn.Linear(5, 1)), fs.seqloss(mse_loss), torch.optim.SGD,
        {"epochs": 1, "batchsize": 6, "seqsize": 10}, amp=amp, progress=False, comm=None,
    )  # fmt: skip
    est.fit(X, Y, validation={"time": 0.25})
    assert states
    assert all(state.dtype == torch.float32 for state in states)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_fused_momentum_begins_with_the_first_update_that_is_made(dampening):
    """PyTorch's kernel would begin with what was in memory if the first update overflows."""

    def trained(fused):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
        x = np.random.default_rng(0).normal(size=(20, 8, 3)).astype("f4")
        y = 300 * x.sum(2, keepdims=True)  # overflows with the first scales
        optimizer = torch.optim.SGD(
            model.parameters(), lr=1e-4, momentum=0.9, dampening=dampening, fused=fused
        )
        loss = fs.seqloss(nn.functional.mse_loss)
        spec = {"epochs": 30, "batchsize": 8, "seqsize": 20}
        est = fs.Estimator(model, loss, optimizer, spec, amp="fp16", progress=False)
        est.fit(x, y)
        return [p.detach() for p in model.parameters()], optimizer

    wanted, _ = trained(False)
    used = [torch.full((n,), 1e9) for n in (1, 6, 18) for _ in range(50)]
    del used  # so that memory holds large numbers
    found, optimizer = trained(True)
    assert all("momentum_buffer" in state for state in optimizer.state.values())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_rank_may_have_no_part_in_the_first_update():
    precision = Precision("fp16", torch.device("cpu"))
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for param in model.parameters():
        param.grad = torch.full_like(param, 2**16)  # another rank's, scaled
    precision.unscale(optimizer)
    assert all(bool((param.grad == 1).all()) for param in model.parameters())
    precision.step(optimizer)
