"""Hostile files of models, checkpoints of fit, and requests to the server."""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from campaign import Campaign, main
from mutations import SavedFile, bytes_of_json, havoc, mutated
from safetensors.torch import load as load_tensors
from torch import nn
from torch.nn.functional import mse_loss
from watched import Watch, each, error_of

import fastseq as fs
from fastseq.checkpoint.encoding import decode
from fastseq.serving import make_app
from fastseq.serving.server import load_served

torch.set_num_threads(1)
warnings.simplefilter("ignore")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 6, 3)).astype("f4")
SUMS = X.sum((1, 2))
WORDS = np.where(SUMS > 0, "up", "down")
TABLE = pd.DataFrame({"a": RNG.standard_normal(12), "c": ["u", "v", "w", "u"] * 3})
DAYS = pd.date_range("2024-01-01", periods=40, freq="D")
SERIES = pd.Series(np.sin(np.arange(40) / 2) + 0.1 * np.arange(40), DAYS, name="y")
PANEL = pd.DataFrame(
    {
        "unique_id": np.repeat(["a", "b"], 40),
        "ds": [*DAYS, *DAYS],
        "y": [*SERIES, *SERIES[::-1]],
        "price": np.tile(np.arange(40) % 5.0, 2),
    }
)
FUTURE = pd.DataFrame(
    {
        "unique_id": np.repeat(["a", "b"], 3),
        "ds": [*pd.date_range("2024-02-10", periods=3)] * 2,
        "price": 1.0,
    }
)


def _estimator(
    model: nn.Module | None = None, callbacks: tuple[Any, ...] = (), **spec: Any
) -> fs.Estimator:
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1)) if model is None else model
    settings = {"epochs": 2, "batchsize": 4, "seqsize": 6, "scale_x": "standard"} | spec
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    loss = fs.seqloss(mse_loss)
    return fs.Estimator(
        model, loss, optimizer, settings, callbacks=callbacks, seed=0, progress=False, device="cpu"
    )


def _models() -> dict[str, tuple[Any, Any]]:
    """Return fitted models, and what predicts with each."""
    steps = X.transpose(1, 0, 2)
    y = steps.cumsum(0)[..., :1]
    small: Any = {"epochs": 1, "batchsize": 6, "hidden_size": 3, "random_state": 0}
    classifier, regressor = fs.SequenceClassifier, fs.SequenceRegressor
    forecaster = functools.partial(
        fs.SequenceForecaster, epochs=1, hidden_size=4, random_state=0, validation=0
    )
    convolutions = fs.nn.Chain(fs.nn.TCN(3, 4, width=4, depth=1, pool=None), nn.Linear(4, 1))

    def inputs(model: Any) -> Any:
        return model.predict(X)

    return {
        "estimator": (_estimator().fit(steps, y), lambda est: est.predict(steps)),
        "lstm": (
            _estimator(fs.nn.Chain(fs.nn.LSTM(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))).fit(steps, y),
            lambda est: est.predict(steps),
        ),
        "tcn": (_estimator(convolutions).fit(steps, y), lambda est: est.predict(steps)),
        "classifier": (classifier("gru", **small).fit(X, WORDS), inputs),
        "rocket": (classifier("rocket", **small).fit(X, WORDS), inputs),
        "table": (
            regressor("mlp", **small, nan="mask").fit(TABLE, SUMS), lambda one: one.predict(TABLE)
        ),
        "regressor": (regressor("lstm", **small, schedule="onecycle").fit(X, SUMS), inputs),
        "forecaster": (forecaster(3, lags=8).fit(SERIES), lambda one: one.predict()),
        "panel": (
            forecaster(3, lags=8, quantiles=[0.1, 0.5, 0.9], calendar=["day_of_week"]).fit(PANEL),
            lambda one: one.predict(X=FUTURE),
        ),
        "gru": (
            forecaster(3, module="gru", conformal="adaptive", lags=8, validation=6, quantiles=[0.2, 0.8]).fit(SERIES),
            lambda one: one.predict(),
        ),
    }  # fmt: skip


MODELS = _models()
LOADS: dict[str, Any] = {
    "Estimator": functools.partial(fs.Estimator.load, progress=False, device="cpu"),
    "SequenceClassifier": fs.SequenceClassifier.load,
    "SequenceRegressor": fs.SequenceRegressor.load,
    "SequenceForecaster": fs.SequenceForecaster.load,
}
# Names that stand in files for what is made: others of the same kinds, and such of torch.
NAMES = ["fastseq.nn.LSTM", "fastseq.nn.Rocket", "torch.nn.Linear", "torch.nn.Embedding", "gru", "lstm",
         "rocket", "mlp", "tcn", "AllCovariates", "Conformal", "Times", "Series", "Labels", "Ordinal",
         "<part>", "<kind>", "<times>", "<index>", "<polars>", "<dtype>", "<torch>", "<objects>",
         "<arrays>", "<label>", "layer", "layers", "fields", "hidden_size", "epochs", "weight", "module",
         "classifier", "forecaster", "estimator", "float16", "complex64", "adam", "sgd"]  # fmt: skip


def _files() -> dict[str, SavedFile]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, _) in MODELS.items():
            path = Path(folder, "model.safetensors")
            model.save(path)
            found[name] = SavedFile(path.read_bytes())
    return found


FILES = _files()
EXPECTED = {name: predict(model) for name, (model, predict) in MODELS.items()}


def saved_models(number: int, folder: Path) -> dict[str, int]:
    """Load changed files of models; what is loaded must be the file's, and can predict."""
    watch = Watch(folder)
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 100):
        kinds[_saved_model(rng, folder, watch)] += 1
    return kinds


def _saved_model(rng: Random, folder: Path, watch: Watch) -> str:
    name = rng.choice(list(FILES))
    how, data = FILES[name].changed(rng, FILES[rng.choice(list(FILES))], NAMES)
    path = folder / "hostile.safetensors"
    path.write_bytes(data)
    load = LOADS[type(MODELS[name][0]).__name__] if rng.random() < 0.8 else load_served
    model, error = watch.run(lambda: load(path), named=[path.name])
    if error is not None:
        # Layers are asked for memory before it is known that they are too large, but not filled.
        return f"{how}: {error_of(error, path.name, untouched=True)}"
    text = SavedFile(data).text
    weights = decode(text, load_tensors(data))
    weights = weights.get("learner", weights)["model"]
    own = (model if isinstance(model, fs.Estimator) else model.estimator_).model.state_dict()
    assert set(own) == set(weights)
    for key, a in own.items():
        np.testing.assert_array_equal(a.float().numpy(), weights[key].float().numpy())
    # A forged file may hold what no data have been: then predictions may fail in any way, but as
    # an exception, and within the same bounds.
    found, error = watch.run(lambda: MODELS[name][1](model))
    if how == "bytes":  # the checksum is right, so it is the same file but for spaces
        if error is not None:
            raise error
        np.testing.assert_array_equal(np.asarray(found), np.asarray(EXPECTED[name]))
    more = ""
    if rng.random() < 0.2 and hasattr(model, "partial_fit"):
        data = {"table": (TABLE, SUMS), "regressor": (X, SUMS)}.get(name, (X, WORDS))
        if name in ("forecaster", "gru"):
            data = (SERIES[-8:].set_axis(pd.date_range("2024-02-10", periods=8)),)
        _, trained = watch.run(lambda: model.partial_fit(*data))
        more = ", trains" if trained is None else ", does not train"
    return f"{how}: read, {'predicts' if error is None else 'does not predict'}{more}"


def _checkpoints() -> list[tuple[SavedFile, Any, Any]]:
    """Return checkpoints, and the weights at the end of the run that they continue."""
    found = []
    for make in (_trained, _scheduled):
        with tempfile.TemporaryDirectory() as folder:
            keep = fs.callbacks.Checkpoint(folder, every_updates=1, keep=100)
            estimator = make(checkpoint=keep)
            end = {name: a.clone() for name, a in estimator.model.state_dict().items()}
            paths = sorted(Path(folder).iterdir())
            found += [(SavedFile(path.read_bytes()), make, end) for path in paths]
    return found


def _trained(**given: Any) -> fs.Estimator:
    steps = X.transpose(1, 0, 2)
    return _estimator(seqsize=3, shuffle=True).fit(steps, steps.cumsum(0)[..., :1], **given)


def _scheduled(**given: Any) -> fs.Estimator:
    steps = X.transpose(1, 0, 2)
    model = fs.nn.Chain(fs.nn.LSTM(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    est = _estimator(
        model,
        callbacks=(
            fs.callbacks.Patience(5),
            fs.callbacks.AnyOf(fs.callbacks.PQ(1e9), fs.callbacks.NumberSinceBest(9)),
            fs.callbacks.Schedule(_one_cycle, per="update"),
            fs.callbacks.RestoreBest(),
        ),
    )
    return est.fit(steps, steps.cumsum(0)[..., :1], **given)


def _one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=1000)


CHECKPOINTS = _checkpoints()


def _checkpoint(rng: Random, folder: Path, watch: Watch) -> str:
    saved, make, end = rng.choice(CHECKPOINTS)
    how, data = saved.changed(rng, rng.choice(CHECKPOINTS)[0], NAMES)
    path = folder / "checkpoint-000001.safetensors"
    path.write_bytes(data)
    place = path if rng.random() < 0.8 else folder
    fitted, error = watch.run(lambda: make(resume=place), named=[path.name])
    if error is not None:
        # The optimizer does not say what it needs: with a forged state it may fail when it steps.
        steps = any(
            "torch/optim" in one.filename for one in traceback.extract_tb(error.__traceback__)
        )
        if isinstance(error, fs.NonFiniteError) or steps:
            return f"{how}: read, does not train"
        return f"{how}: {error_of(error, path.name, str(folder))}"
    if how == "bytes":
        for name, a in fitted.model.state_dict().items():
            assert torch.equal(a, end[name]), name
    return f"{how}: read"


BODIES: dict[str, tuple[str, Any]] = {
    "classifier": ("/predict", {"records": X[:2].tolist()}),
    "table": ("/predict", {"records": [{"a": 0.5, "c": "u"}, {"a": None, "c": "new"}]}),
    "forecaster": ("/predict", {"records": [SERIES.tolist()]}),
    "panel": (
        "/forecasts",
        {
            "ids": ["a", "b"],
            "horizon": 3,
            "future": FUTURE.assign(ds=FUTURE["ds"].astype(str)).to_dict("records"),
        },
    ),
    "estimator": ("/step", {"client": "me", "step": 0, "x": [1.0, 2.0, 3.0]}),
    "lstm": ("/predict", {"records": X[:2].tolist()}),
}
_FIELDS = ["records", "static", "client", "step", "x", "ids", "horizon", "future", "price", "a", "c", "id",
           "times", [[1.0, 2.0, 3.0]], [[[1.0]]], {"a": 1, "c": "u"}, 3e38, 1e39, 10**400, "b", "me"]  # fmt: skip


class _Server:
    """Apps of models, asked in this process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.apps = {name: make_app(MODELS[name][0], most_bytes=1 << 20) for name in BODIES}

    def ask(
        self,
        name: str,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        parts: list[bytes],
    ) -> tuple[int, bytes]:
        """Return status and body of an answer; what the app raises is raised."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": headers, "client": ("1.2.3.4", 1), "server": ("a", 80), "state": {},
        }  # fmt: skip
        waiting = [
            {"type": "http.request", "body": part, "more_body": one + 1 < len(parts)}
            for one, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        self._loop.run_until_complete(self.apps[name](scope, receive, send))
        return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


def _server(folder: Path, watch: Watch) -> tuple[_Server, Watch]:
    del folder
    return _Server(), watch


def _request(rng: Random, server: _Server, watch: Watch) -> str:
    name = rng.choice(list(BODIES))
    path, tree = BODIES[name]
    body = json.dumps(tree).encode()
    same = rng.random() < 0.03
    if not same and rng.random() < 0.75:
        body = bytes_of_json(rng, mutated(rng, tree, _FIELDS))
    if not same and rng.random() < 0.4:
        body = havoc(rng, body, json.dumps(BODIES[rng.choice(list(BODIES))][1]).encode())
    headers = [(b"content-type", b"application/json"), (b"host", b"a"),
               (b"content-length", str(len(body)).encode())]  # fmt: skip
    method = "POST"
    if not same and rng.random() < 0.1:
        at = rng.randrange(len(headers))
        headers[at] = (
            headers[at][0],
            rng.choice((b"", b"-1", b"9" * 30, b"abc", b"\xff", b"text/plain")),
        )
        method = rng.choice(("POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"))
        path = rng.choice(
            (path, "/clients/me", "/clients/%2e%2e/x", "/", "/../etc/passwd", "/series")
        )
    cut = rng.randrange(len(body) + 1)
    parts = [body[:cut], body[cut:]] if rng.random() < 0.2 else [body]
    found, error = watch.run(lambda: server.ask(name, method, path, headers, parts))
    if error is not None:
        raise error
    status, answer = found
    assert 200 <= status < 500, (status, answer, body[:300])
    if status in (200, 204):
        _check_answer(name, path, body, answer)
    elif status < 400:
        assert path == "/", (status, path)  # leads to the documentation
    elif method != "HEAD":
        detail = json.loads(answer)["detail"]
        assert "\n" not in detail, detail
        assert len(detail) < 1000, detail
    assert not same or status == 200 or path == "/step", answer
    return f"{name}: {status}"


def _check_answer(name: str, path: str, body: bytes, answer: bytes) -> None:
    """Raise unless an answer is what the model says of the numbers that were sent."""
    if path != "/predict":
        return
    records, found = json.loads(body)["records"], json.loads(answer)
    if name == "classifier":
        wanted = [MODELS[name][0].predict_proba([np.array(one, "f4")])[0] for one in records]
        np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
    elif name == "table":
        wanted = MODELS[name][0].predict(pd.DataFrame(records, columns=["a", "c"]))
        np.testing.assert_allclose(found["predictions"], wanted, rtol=1e-4, atol=1e-5)
    assert len(found["predictions"]) == len(records)


PREPARED = {"_request": _server}


def checkpoints(number: int, folder: Path) -> dict[str, int]:
    """Continue from changed checkpoints: the whole ones end as the run that wrote them."""
    watch = Watch(folder)
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 50):
        kinds[_checkpoint(rng, folder, watch)] += 1
    return kinds


def requests(number: int, folder: Path) -> dict[str, int]:
    """Send changed requests to the server."""
    watch = Watch(folder)
    server = _Server()
    kinds: collections.Counter[str] = collections.Counter()
    for _, rng in each(number, 200):
        kinds[_request(rng, server, watch)] += 1
    return kinds


CAMPAIGNS = [
    Campaign(
        "fuzz-models", saved_models, 3000, 120,
        "Damaged and forged files of saved models are read, or refused with an error that names "
        "the file; none runs code, opens other files, crashes, hangs, or takes unlimited memory.",
    ),
    Campaign(
        "fuzz-checkpoints", checkpoints, 3000, 120,
        "fit continues from damaged or forged checkpoints, or refuses them with an error that names "
        "the file; none runs code, opens other files, crashes, hangs, or takes unlimited memory.",
    ),
    Campaign(
        "fuzz-requests", requests, 1500, 120,
        "The server answers each request, whatever its bytes, with the model's output, or with a "
        "status from 400 to 499 and a one-sentence error.",
    ),
]  # fmt: skip

if __name__ == "__main__":
    main(CAMPAIGNS)
