"""The same thing done very often in one process: nothing grows, and numbers do not drift."""

from __future__ import annotations

import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from campaign import Campaign, main
from held import check_steady
from starlette.testclient import TestClient
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.distributed.launchers import Launch
from fastseq.distributed.rendezvous import Rendezvous
from fastseq.serving import make_app

torch.set_num_threads(1)
LOSS = fs.seqloss(mse_loss)
LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class Unknown(nn.Module):
    """A recurrent network that only torch can train: its forward is nobody else's."""

    def __init__(self, kind: type[nn.RNNBase], features: int, hidden: int) -> None:
        super().__init__()
        self.rnn = kind(features, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h, state = self.rnn(x, state)
        return self.head(h.tanh()), state


def estimator(model: nn.Module, lr: float = 0.01, **more: Any) -> fs.Estimator:
    spec = {"epochs": 1, "batchsize": 2, "seqsize": 5, **more.pop("spec", {})}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"progress": False, "device": "cpu", "comm": None, **more}
    return fs.Estimator(model, LOSS, optimizer, spec, **options)


def series(draw: random.Random, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(draw.getrandbits(32)))


def drawn_chain(draw: random.Random, features: int = 2) -> fs.nn.Chain:
    torch.manual_seed(draw.getrandbits(32))
    hidden = draw.randint(1, 4)
    return fs.nn.Chain(LAYERS[draw.choice([*LAYERS])](features, hidden), nn.Linear(hidden, 1))


# Imports what cases need, once.
estimator(nn.Linear(1, 1)).fit(torch.zeros(4, 2, 1), torch.zeros(4, 2, 1))
fs.SequenceClassifier, fs.SequenceForecaster  # noqa: B018

# --- updates -------------------------------------------------------------------------------------


def native_updates(number: int, _: Path) -> str:
    """Make 100,000 updates in C++, and a pass of 50,000 more whose mean loss is known."""
    draw = random.Random(number)  # noqa: S311
    model = drawn_chain(draw)
    x = series(draw, 5000, 4, 2)
    y = x.mean(2, keepdim=True)
    est = estimator(model, spec={"batchsize": 2, "seqsize": 2})  # 5000 updates
    check_steady(lambda _: est.fit(x, y), 2, 20)
    assert "in C++" in str(fs.info(est)["updates"]), fs.info(est)
    losses = [row["loss"] for row in est.history_]
    assert losses[-1] < losses[0], losses
    check_mean_loss(model, series(draw, 50_000, 1, 2))
    return type(model[0]).__name__


def torch_updates(number: int, _: Path) -> str:
    """Make 5,000 updates through autograd, and some more whose mean loss is known."""
    draw = random.Random(number)  # noqa: S311
    torch.manual_seed(number)
    model = Unknown(LAYERS[draw.choice([*LAYERS])], 2, draw.randint(1, 4))
    x = series(draw, 500, 2, 2)
    y = x.mean(2, keepdim=True)
    est = estimator(model, spec={"batchsize": 2, "seqsize": 2})  # 250 updates
    check_steady(lambda _: est.fit(x, y), 2, 20)
    assert "in C++" not in str(fs.info(est)["updates"]), fs.info(est)
    check_mean_loss(model, series(draw, 1000, 1, 2))
    return type(model.rnn).__name__


def check_mean_loss(model: nn.Module, x: Tensor) -> None:
    """The loss of an epoch is the mean of those of its updates, exactly summed.

    Nothing is learnt, so that the losses are those of one model. One sequence, one step at a time.
    """
    y = x.mean(2, keepdim=True)
    est = estimator(model, lr=0.0, spec={"batchsize": 1, "seqsize": 1}).fit(x, y)
    with torch.no_grad():
        outputs = torch.from_numpy(est.predict(x))
    mean = float(((outputs - y).double() ** 2).mean())
    loss = est.history_[-1]["loss"]
    assert abs(loss - mean) <= 1e-6 * mean, (loss, mean)


# --- steps ---------------------------------------------------------------------------------------


def steps(number: int, folder: Path) -> str:
    """Make 1,000 steps of 10,000 series; the estimator is saved and loaded half-way."""
    return stepped(number, folder, 1000, 10)


def long_steps(number: int, folder: Path) -> str:
    """Make 100,000 steps of 10,000 series."""
    return stepped(number, folder, 100_000, 100)


def stepped(number: int, folder: Path, count: int, every: int) -> str:
    """Run `step`, and torch's own layers over the same series, `every` steps at a time."""
    draw = random.Random(number)  # noqa: S311
    model = drawn_chain(draw)
    est = estimator(model)
    generator = torch.Generator().manual_seed(number)
    state = None

    def some(_: int) -> None:
        nonlocal state
        x = torch.randn(every, 10_000, 2, generator=generator)
        for row in x:
            y = est.step(row)
        with torch.no_grad():
            h, state = model[0](x, state)
            wanted = model[1](h[-1])
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)

    half = count // every // 2
    warm = max(half // 10, 2)
    check_steady(some, warm, half - warm)
    est.save(folder / "half.pt", state=True)
    est = fs.Estimator.load(folder / "half.pt", comm=None, device="cpu", progress=False)
    check_steady(some, 2, half - 2)
    torch.testing.assert_close(est.get_state()[0], state, rtol=1e-4, atol=1e-5)
    return type(model[0]).__name__


# --- fits ----------------------------------------------------------------------------------------


def fit_kinds(draw: random.Random, folder: Path) -> dict[str, Callable[[int], object]]:
    """Return what fits once, for each kind of model and data."""
    x = series(draw, 40, 4, 2)
    y = x.mean(2, keepdim=True)
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"], file["y"] = x, y
        file.create_dataset("chunked", data=x, chunks=(8, 2, 2), compression="gzip")
    seed = draw.getrandbits(32)
    samples = np.random.default_rng(seed).standard_normal((16, 5, 2)).astype(np.float32)
    up = np.arange(16) % 2
    wave = np.sin(np.arange(80) / 3)
    small = {"hidden_size": 3, "epochs": 2, "random_state": 0, "device": "cpu"}

    def memory(_: int) -> None:
        estimator(drawn_chain(random.Random(0))).fit(x, y)  # noqa: S311

    def autograd(_: int) -> None:
        estimator(Unknown(nn.GRU, 2, 2)).fit(x, y)

    def hdf5(number: int) -> None:
        name = "chunked" if number % 2 else "x"
        if number % 3:
            with h5py.File(folder / "data.h5") as file:
                estimator(drawn_chain(random.Random(0))).fit(file[name], file["y"])  # noqa: S311
        else:
            mapped = fs.h5mmap(folder / "data.h5", name), fs.h5mmap(folder / "data.h5", "y")
            estimator(drawn_chain(random.Random(0))).fit(*mapped)  # noqa: S311

    def checkpoints(number: int) -> None:
        est = estimator(drawn_chain(random.Random(0)))  # noqa: S311
        resume = "auto" if number % 2 else None
        est.fit(x, y, epochs=2 + number % 2, checkpoint=folder / "run", resume=resume)

    def classifier(_: int) -> None:
        fs.SequenceClassifier("gru", batchsize=4, **small).fit(samples, up)

    def regressor(_: int) -> None:
        fs.SequenceRegressor("lstm", batchsize=4, **small).fit(samples, samples.sum((1, 2)))

    def forecaster(_: int) -> None:
        fs.SequenceForecaster(4, season=None, batchsize=4, **small).fit(wave)

    kinds = (memory, autograd, hdf5, checkpoints, classifier, regressor, forecaster)
    return {kind.__name__: kind for kind in kinds}


def fits(number: int, folder: Path) -> str:
    """Fit 420 models of one kind."""
    draw = random.Random(number)  # noqa: S311
    kinds = fit_kinds(draw, folder)
    name = [*kinds][number % len(kinds)]
    check_steady(kinds[name], 20, 400)
    return name


def long_fits(number: int, folder: Path) -> str:
    """Fit 10,500 models, of all kinds in turn."""
    kinds = [*fit_kinds(random.Random(number), folder).values()]  # noqa: S311

    def one_of_each(turn: int) -> None:
        for kind in kinds:
            kind(turn)

    check_steady(one_of_each, 50, 1450)
    return "all kinds"


# --- other calls ---------------------------------------------------------------------------------


def forecasts(number: int, _: Path) -> str:
    """Update a forecaster 260 times, and forecast after each."""
    draw = random.Random(number)  # noqa: S311
    count = draw.choice([1, 3])
    t = np.arange(2000)
    y = np.stack([np.sin(t / (3 + n)) for n in range(count)])
    quick = {"epochs": 2, "hidden_size": 4, "batchsize": 4, "random_state": number, "device": "cpu"}
    module = draw.choice(["segrnn", "lstm", "gru"])
    f = fs.SequenceForecaster(4, module=module, season=None, **quick).fit([*y[:, :60]])
    whole = fs.SequenceForecaster(4, module=module, season=None, **quick).fit([*y[:, :60]])

    def update(at: int) -> None:
        f.update([*y[:, 60 + 3 * at : 63 + 3 * at]])
        assert np.isfinite(np.asarray(f.predict())).all()

    check_steady(update, 10, 250)
    whole.update([*y[:, 60 : 60 + 3 * 260]])
    np.testing.assert_allclose(f.predict(), whole.predict(), rtol=1e-4, atol=1e-5)
    return module


def predictions(number: int, folder: Path) -> str:
    """Predict 520 times, from memory and from files, to new arrays, arrays and files."""
    draw = random.Random(number)  # noqa: S311
    x = series(draw, 30, 4, 2)
    with h5py.File(folder / "data.h5", "w") as file:
        file["x"] = x
        file.create_dataset("chunked", data=x, chunks=(8, 2, 2), compression="gzip")
        file["out"] = np.zeros((30, 4, 1), np.float32)
        file.create_dataset("other", (30, 4, 1), np.float32, chunks=(8, 2, 1))
    est = estimator(drawn_chain(draw))
    wanted = est.predict(x)
    what = draw.choice(["memory", "list", "chunked", "mapped", "written", "written in chunks"])

    def predict(_: int) -> None:
        data: Any = x
        out: Any = None
        if what in ("chunked", "mapped"):
            data = fs.h5mmap(folder / "data.h5", "chunked" if what == "chunked" else "x")
        elif what == "list":
            data = [*x.transpose(0, 1)]
        elif what.startswith("written"):
            name = "other" if what.endswith("chunks") else "out"
            out = fs.h5mmap(folder / "data.h5", name, mode="r+")
        found = est.predict(data, out=out)
        found = np.stack(found, 1) if what == "list" else np.asarray(found)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)

    check_steady(predict, 20, 500)
    return what


def requests(number: int, _: Path) -> str:
    """Answer 550 requests in this process."""
    draw = random.Random(number)  # noqa: S311
    rng = np.random.default_rng(number)
    samples = rng.standard_normal((16, 5, 2)).astype(np.float32)
    x = series(draw, 20, 2, 2)
    model: Any = estimator(drawn_chain(draw)).fit(x, x[..., :1])
    what = draw.choice(["steps", "predict", "classifier", "refused"])
    if what == "classifier":
        model = fs.SequenceClassifier(
            "gru", hidden_size=3, epochs=2, batchsize=4, random_state=0, device="cpu"
        ).fit(samples, np.arange(16) % 2)
    with TestClient(make_app(model)) as client:

        def ask(at: int) -> None:
            record = samples[at % 16].tolist()
            if what == "steps":
                body: Any = {"client": f"client {at}", "records": [record[0]]}
                answer = client.post("/step", json=body)
            elif what == "refused":
                answer = client.post("/predict", json={"records": [[["text"]]]})
            else:
                answer = client.post("/predict", json={"records": [record]})
            assert answer.status_code == (422 if what == "refused" else 200), answer.text

        check_steady(ask, 50, 500)
    return what


# --- communicators -------------------------------------------------------------------------------


def communicators(number: int, _: Path) -> str:
    """Make and close 550 communicators of two processes, each for a sum."""
    draw = random.Random(number)  # noqa: S311
    transport = draw.choice(["shm", "shm", "gloo"])
    read, write = os.pipe()
    child = os.fork()
    rank = 0 if child else 1
    try:
        if child:
            port = _free_port()
            os.write(write, f"{port}\n".encode())
        else:
            port = int(os.read(read, 16))
        os.close(read)
        os.close(write)
        launch = Launch("the campaign", False, rank, 2, "localhost", port)
        meeting = Rendezvous(launch, timeout=20.0)

        def use(at: int) -> None:
            comm = fs.distributed.Communicator(meeting, transport=transport, timeout=20.0)
            values = torch.full((100,), float(at + rank))
            comm.allreduce_(values)
            assert torch.equal(values, torch.full((100,), at + 0.5)), values

        check_steady(use, 50, 500)
        fs.distributed.Communicator(meeting, timeout=20.0).barrier()
    except BaseException:
        if not child:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        raise
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the other rank failed"
    return transport


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


warnings.simplefilter("ignore", category=UserWarning)
_HELD = "memory, descriptors, threads, children and temporary files stay as they were"
CAMPAIGNS = [
    Campaign("endurance-native", native_updates, 100, 300, f"In 10^5 updates in C++ {_HELD}."),
    Campaign("endurance-torch", torch_updates, 20, 300, f"In 5000 updates by torch {_HELD}."),
    Campaign("endurance-steps", steps, 100, 300, f"In 1000 steps of 10^4 series {_HELD}."),
    Campaign("endurance-long-steps", long_steps, 1, 7200, f"In 10^5 steps {_HELD}."),
    Campaign("endurance-fits", fits, 28, 600, f"In 400 fits {_HELD}."),
    Campaign("endurance-long-fits", long_fits, 1, 7200, f"In 10^4 fits {_HELD}."),
    Campaign("endurance-forecasts", forecasts, 4, 300, f"In 250 updates {_HELD}."),
    Campaign("endurance-predict", predictions, 20, 300, f"In 500 predictions {_HELD}."),
    Campaign("endurance-requests", requests, 20, 300, f"In 500 requests {_HELD}."),
    Campaign("endurance-ranks", communicators, 20, 300, f"In 500 communicators {_HELD}."),
]

if __name__ == "__main__":
    main(CAMPAIGNS)
