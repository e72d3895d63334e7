"""Models in ONNX, run by onnxruntime for other numbers of steps and sequences than they were traced."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fastseq as fs

X = torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(0))

MODELS = {
    "LSTM of two layers": lambda: fs.nn.Chain(fs.nn.LSTM(3, 5, num_layers=2), nn.Linear(5, 2)),
    "torch's LSTM": lambda: fs.nn.Chain(nn.LSTM(3, 5), nn.Linear(5, 2)),
    "GRU": lambda: fs.nn.Chain(fs.nn.GRU(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    "RNN": lambda: fs.nn.RNN(3, 2),
    "RNN with relu, without biases": lambda: fs.nn.RNN(3, 2, nonlinearity="relu", bias=False),
    "LSTM both ways": lambda: fs.nn.Chain(fs.nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 2)),
    "GRU both ways": lambda: fs.nn.GRU(3, 1, bidirectional=True),
    "no state": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
}
LONG = ("torch's LSTM", "RNN", "GRU both ways", "no state")


def trained(model: nn.Module, x: torch.Tensor = X) -> fs.Estimator:
    spec = {"epochs": 1, "batchsize": 3, "seqsize": 6, "scale_x": "standard", "scale_y": "standard"}
    est = fs.Estimator(model, fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec, progress=False)
    return est.fit(x, x[..., :2].cumsum(0))


@pytest.mark.filterwarnings("ignore:the model has a bidirectional layer")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in MODELS]
)
def test_onnxruntime_predicts_the_same(name, tmp_path):
    torch.manual_seed(0)
    est = trained(MODELS[name]())
    path = tmp_path / "model.onnx"
    est.export(path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["time", "batch", 3]
    described = session.get_modelmeta().custom_metadata_map["fastseq.json"]
    states = json.loads(described)["state"]
    names = [one.name for one in session.get_inputs()]
    assert names == ["x", *(f"state_{n}" for n in range(len(states)))]

    def run(x: np.ndarray, state: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        y, *after = session.run(None, dict(zip(names, [x, *state], strict=True)))
        return y, after

    for steps, count in ((12, 6), (30, 2), (1, 1)):
        x = np.random.default_rng(steps).standard_normal((steps, count, 3)).astype(np.float32)
        wanted = est.predict(x)
        start = [
            np.repeat(np.array(one["start"], np.float32), count, one["batch_dim"]) for one in states
        ]
        np.testing.assert_allclose(run(x, start)[0], wanted, atol=1e-5)
        if states and steps > 1:  # in two parts
            first, after = run(x[:5], start)
            second, _ = run(x[5:], after)
            np.testing.assert_allclose(np.concatenate([first, second]), wanted, atol=1e-5)


def test_classifier(tmp_path):
    x = X.swapaxes(0, 1).numpy()
    model = fs.SequenceClassifier("lstm", epochs=1, pool="last", random_state=0)
    model.fit(x, np.arange(6) % 2)
    model.estimator_.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    feed = {"x": X.numpy()}
    for one, state in zip(
        session.get_inputs()[1:],
        json.loads(session.get_modelmeta().custom_metadata_map["fastseq.json"])["state"],
        strict=True,
    ):
        feed[one.name] = np.repeat(np.array(state["start"], np.float32), 6, state["batch_dim"])
    scores = torch.from_numpy(session.run(None, feed)[0])
    np.testing.assert_allclose(scores.softmax(-1), model.predict_proba(x), atol=1e-5)


def test_what_cannot_be_exported(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="needs a model in single precision"):
        trained(fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 2)).double(), X.double()).export(path)
    with pytest.raises(ValueError, match=r"single precision, but .* is torch\.bfloat16"):
        est = fs.Estimator(
            nn.Linear(3, 2).bfloat16(), fs.seqloss(nn.MSELoss()), torch.optim.SGD,
            {"epochs": 1, "batchsize": 3, "seqsize": 6}, progress=False,
        )  # fmt: skip
        est.export(path, X)
    assert not list(tmp_path.iterdir())


def test_onnxscript_is_needed(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(fs.MissingFeatureError, match="pip install onnxscript"):
        trained(nn.Linear(3, 2)).export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
