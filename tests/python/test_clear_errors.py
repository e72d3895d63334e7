"""Messages of what users get wrong most: early, and with what to do."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

X = torch.randn(10, 4, 2, generator=torch.Generator().manual_seed(0))
Y = X[..., :1]


def estimator(model=None, optimizer=torch.optim.Adam, **options):
    torch.manual_seed(0)
    spec = {"epochs": 2, "batchsize": 2, "seqsize": 5}
    model = model or fs.nn.Chain(fs.nn.GRU(2, 3), nn.Linear(3, 1))
    options = {"progress": False, "comm": None, **options}
    return fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 1.5, None])
def test_unknown_devices(device):
    with pytest.raises(ValueError, match='device must be "auto", "cpu", "cuda"'):
        estimator(device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda", 3)])
def test_devices_that_are_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch finds no GPU"):
        estimator(device=device)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("shuffle", "no", TypeError, "shuffle must be True or False, got 'no'"),
        ("shuffle", 1, TypeError, "shuffle must be True or False"),
        ("clip_norm", "1", TypeError, "clip_norm must be a number or None, got '1'"),
        ("clip_value", True, TypeError, "clip_value must be a number or None"),
        ("clip_norm", float("nan"), ValueError, "clip_norm must be positive or None, got nan"),
        ("clip_norm", -1.0, ValueError, "clip_norm must be positive"),
    ],
)
def test_fields_of_spec(field, value, error, message):
    with pytest.raises(error, match=message):
        fs.Spec(1, 1, 1, **{field: value})


def test_fields_of_spec_that_are_right():
    assert fs.Spec(1, 1, 1, shuffle=np.bool_(True), clip_norm=np.float32(2)).shuffle
    with pytest.raises(ValueError, match='batch_size: did you mean "batchsize"'):
        fs.Spec.of({"epochs": 1, "batch_size": 2, "seqsize": 3})


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_fit_without_gradients(off):
    est = estimator()
    before = fs.net2vec(est.model).detach()
    with off(), pytest.raises(ValueError, match="fit needs gradients"):
        est.fit(X, Y)
    assert torch.equal(fs.net2vec(est.model), before)
    est.fit(X, Y)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_model_that_becomes_double_between_fits(kind, fused):
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    model = nn.Linear(2, 1)
    est = estimator(model, kind(model.parameters(), lr=0.1, fused=fused, **more))
    est.fit(X, Y, epochs=1)
    plain = nn.Linear(2, 1)
    plain.load_state_dict(model.state_dict())
    other = kind(plain.parameters(), lr=0.1, **more)
    saved = copy.deepcopy(est.optimizer.state_dict())
    model.double()
    plain.double()
    other.load_state_dict(saved)  # in the parameters' dtype
    for group in other.param_groups:
        group["fused"] = False
    est.fit(X.double(), Y.double(), epochs=1)
    for n in (0, 2):
        for t in (0, 5):
            x, y = X[t : t + 5, n : n + 2].double(), Y[t : t + 5, n : n + 2].double()
            other.zero_grad()
            mse_loss(plain(x), y).backward()
            other.step()
    torch.testing.assert_close(model.weight, plain.weight, rtol=1e-6, atol=1e-9)
    assert model.weight.dtype == torch.float64


def test_names_that_are_nearly_right():
    with pytest.raises(
        ValueError, match="'lstm', 'gru', 'rnn', got 'lstmm': did you mean \"lstm\""
    ):
        fs.builders.Recurrent("lstmm")
    x = np.zeros((4, 3, 2))
    for wrong, meant in (("module", "lstmm"), ("optimizer", "adamx"), ("loss", "mea")):
        with pytest.raises(ValueError, match=f"{meant!r}.*did you mean"):
            fs.SequenceRegressor(**{wrong: meant}).fit(x, np.arange(4.0))
    with pytest.raises(ValueError, match=r"'acc' is not one of .*: did you mean \"accuracy\"\?"):
        fs.callbacks.Metrics("acc")


@pytest.mark.parametrize("use", ["step", "predict"])
def test_states_of_another_structure(use):
    est = estimator(nn.GRU(2, 1))
    est.predict(X)
    est.set_state((torch.zeros(1, 4, 1),) * 2)
    with pytest.raises(ValueError, match=r"with state; got state\[0\], state\[1\]"):
        est.step(X[0]) if use == "step" else est.predict(X, reset=False)
    est.set_state(torch.zeros(1, 4, 1))
    est.step(X[0])


WITHOUT = """
import sys
sys.modules[{package!r}] = None
import fastseq as fs
try:
    fs.History().{call}()
except fs.MissingFeatureError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("package", "call"),
    [("pandas", "to_frame"), pytest.param("matplotlib", "plot", marks=pytest.mark.slow)],
)
def test_history_without_optional_packages(package, call):
    script = WITHOUT.format(package=package, call=call)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"History.{call} needs the package {package}" in done.stdout


class Complex(nn.Module):
    """The absolute value of a product with complex weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
        self.head = nn.Linear(3, 1)
        self.register_buffer("phase", torch.randn(3, dtype=torch.complex128))

    def forward(self, x):
        return self.head((x.to(self.weight.dtype) @ self.weight).abs())


def test_complex_parameters_are_trained_saved_and_resumed(tmp_path):
    est = estimator(Complex())
    torch.manual_seed(0)
    plain = Complex()
    plain.load_state_dict(est.model.state_dict())
    optimizer = torch.optim.Adam(plain.parameters())
    for _ in range(2):
        for n in (0, 2):
            for t in (0, 5):
                optimizer.zero_grad()
                part = slice(t, t + 5), slice(n, n + 2)
                mse_loss(plain(X[part]), Y[part]).backward()
                optimizer.step()
    est.fit(X, Y, checkpoint=tmp_path / "run")
    torch.testing.assert_close(est.model.weight, plain.weight)
    est.save(tmp_path / "model.safetensors")
    loaded = fs.Estimator.load(tmp_path / "model.safetensors", Complex, comm=None)
    for name, value in est.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    again = estimator(Complex())
    again.fit(X, Y, epochs=3, checkpoint=tmp_path / "run", resume="auto")
    est.callbacks = [fs.callbacks.Snapshots(tmp_path / "snapshots")]
    est.fit(X, Y, epochs=1)
    assert torch.equal(again.model.weight, est.model.weight)
    file = load_file(tmp_path / "snapshots" / "epoch-0003.safetensors")
    assert torch.equal(torch.view_as_complex(file["weight"]), est.model.weight)


def test_complex_gradients_are_averaged():
    model = Complex()
    buckets = fs.distributed.Bucketizer(model, None)
    model(X).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    buckets.wait()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, wanted[name])
    comm = fs.distributed.Communicator()
    assert torch.equal(comm.allreduce_(model.phase.clone()), model.phase)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_bmm_of_too_few_dimensions(shape):
    with pytest.raises(ValueError, match="bmm: expected a"):
        fs.bmm(torch.ones(shape), torch.ones(shape))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("scale", [None, "standard"])
def test_another_number_of_features(scale, width):
    """One feature would be broadcast by the scaling of two."""
    other = torch.ones(10, 4, width)
    est = estimator()
    est.spec = fs.Spec(1, 2, 5, scale_x=scale)
    est.fit(X, Y)
    before = copy.deepcopy(est.model.state_dict())
    calls = [
        lambda: est.predict(other), lambda: est.step(other[0]), lambda: est.evaluate(other, Y),
        lambda: est.fit(other, Y), lambda: est.fit(X, Y, validation=(other, Y)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=rf"x has ({width} features|features \({width},\))"):
            call()
    assert all(torch.equal(before[key], a) for key, a in est.model.state_dict().items())


class Summed(nn.Module):
    """Takes any number of features, in a dict."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, x):
        return self.head(x["a"].sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a, lambda a: {"b": a}, lambda a: {"a": a, "b": a}, lambda a: (a,),
        lambda a: {"a": a[..., :1]},
    ],
)  # fmt: skip
def test_inputs_unlike_those_that_were_scaled(make):
    x, one = make(X), make(X[0])
    est = estimator(Summed())
    est.spec = fs.Spec(1, 2, 5, scale_x="standard", scale_y="standard")
    est.fit({"a": X}, Y)
    for call in (lambda: est.predict(x), lambda: est.evaluate(x, Y), lambda: est.step(one)):
        with pytest.raises(ValueError, match="that fit has scaled"):
            call()
    with pytest.raises(ValueError, match=r"y has features \(2,\), but .* \(1,\)"):
        est.evaluate({"a": X}, X)


def test_a_scaling_is_forgotten_where_validation_does_not_fit_it():
    est = estimator(Summed())
    est.spec = fs.Spec(1, 2, 5, scale_x="standard")
    with pytest.raises(ValueError, match="must have the features of the training data"):
        est.fit({"a": X}, Y, validation=({"a": X[..., :1]}, Y))
    assert est.scaling_ is None


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(2, 1, 3)

    def forward(self, x):
        return self.layer(nn.functional.pad(x.permute(1, 2, 0), (2, 0))).permute(2, 0, 1)


def test_a_step_that_the_model_cannot_take_says_nothing_about_the_model():
    est = estimator(Last())
    est.spec = fs.Spec(1, 2, 5, context=2)
    est = fs.Estimator(est.model, est.loss, torch.optim.SGD, est.spec, comm=None, progress=False)
    with pytest.raises(RuntimeError, match="channels"):
        est.step(torch.ones(4, 3))
    assert est.step(X[0]).shape == (4, 1)


def test_a_loss_that_takes_no_weights():
    def plain(m, xs, ys):
        return mse_loss(m(xs), ys)

    est = estimator()
    est = fs.Estimator(est.model, plain, torch.optim.SGD, est.spec, comm=None, progress=False)
    est.fit(X, Y)
    for call in (est.fit, est.evaluate):
        with pytest.raises(TypeError, match="plain does not take: give it a fourth parameter"):
            call(X, Y, lengths=[10, 3, 4, 5])
