"""Exported programs: reloaded, also in processes that have no fastseq, and compared with predict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from jobs import mpirun
from torch import nn

import fastseq as fs

SPEC = {"epochs": 1, "batchsize": 4, "seqsize": 7}


def estimator(model, **more):
    loss = fs.seqloss(nn.functional.mse_loss)
    return fs.Estimator(model, loss, torch.optim.SGD, SPEC, device="cpu", progress=False, **more)


class Sums(nn.Module):
    """Sums over time from a start of its own; the state is a dict, with the batch first."""

    def __init__(self, features: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.drop = nn.Dropout(0.5)
        self.start = nn.Parameter(torch.randn(hidden))

    def forward(self, x, state=None):
        if state is None:
            state = {"sum": self.start.expand(x.shape[1], -1), "none": None}
        sums = torch.cat([state["sum"][None], self.drop(self.inner(x))]).cumsum(0)
        return sums[1:], {"sum": sums[-1], "none": None}


class Small(nn.Module):
    """Small products of our own operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return torch.ops.fastseq.bmm(x, self.weight.expand(x.shape[0], -1, -1))


def load(path):
    files = {"fastseq.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    return program, json.loads(files["fastseq.json"])["state"]


def start(states, count):
    return tuple(
        torch.tensor(s["start"], dtype=getattr(torch, s["dtype"])).repeat_interleave(
            count, s["batch_dim"]
        )
        for s in states
    )


def test_any_number_of_steps_and_sequences(tmp_path):
    est = estimator(fs.nn.Chain(Sums(), nn.Linear(4, 2)))
    path = tmp_path / "model.pt2"
    est.export(path, torch.zeros(1, 1, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    program, states = load(path)
    assert [(s["name"], s["batch_dim"]) for s in states] == [("state[0]['sum']", 0)]
    for steps, count in [(1, 1), (1, 6), (5, 1), (5, 3), (40, 17)]:
        x = torch.randn(steps, count, 3)
        expected = torch.from_numpy(est.predict(x))
        y, state = program(x, start(states, count))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert not y.requires_grad
        torch.testing.assert_close(state, (est.get_state()[0]["sum"],), rtol=1e-5, atol=1e-5)
        state, parts = start(states, count), []  # the same, one step after the other
        for x_t in x:
            y, state = program(x_t[None], state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-5)


def test_the_estimator_stays_as_it_was(tmp_path):
    est = estimator(fs.nn.Chain(Sums(), nn.Linear(4, 1)), seed=3)
    x = torch.randn(9, 5, 3)
    est.predict(x)
    state, draw = est.get_state(), torch.random.get_rng_state()
    est.export(tmp_path / "model.pt2")
    assert torch.equal(torch.random.get_rng_state(), draw)
    assert torch.equal(est.get_state()[0]["sum"], state[0]["sum"])
    assert all(p.requires_grad for p in est.model.parameters())
    assert est.model.training


def test_models_without_state_and_dtypes(tmp_path):
    est = estimator(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double())
    x = np.random.default_rng(0).normal(size=(6, 5, 3))
    est.export(tmp_path / "model.pt2", x)
    program, states = load(tmp_path / "model.pt2")
    assert states == []
    np.testing.assert_allclose(program(torch.from_numpy(x)).numpy(), est.predict(x), rtol=1e-12)


class Both(NamedTuple):
    level: torch.Tensor
    slope: torch.Tensor


class Named(nn.Module):
    """Takes and returns named tuples, which a program would have to import."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = Sums()

    def forward(self, x, state):
        state = None if state is None else state[0]
        y, state = self.sums(torch.cat([x.level, x.slope], -1), state)
        return Both(level=y, slope=2 * y), [state]


def test_named_tuples_become_tuples(tmp_path):
    est = estimator(Named())
    x = Both(torch.randn(6, 5, 1), torch.randn(6, 5, 2))
    est.export(tmp_path / "model.pt2", x)
    program, states = load(tmp_path / "model.pt2")
    y, _ = program(tuple(x), start(states, 5))
    expected = est.predict(x)
    assert type(y) is tuple
    for a, b in zip(y, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-5)


FRESH = """
import json, sys
sys.modules["fastseq"] = None  # importing it would be an error
import torch
torch.ops.load_library(sys.argv[1])
x, state, y, after = torch.load("data.pt", weights_only=True)
if sys.argv[2] == "compiled":
    program = torch._inductor.aoti_load_package("compiled.pt2")
else:
    program = torch.export.load("model.pt2").module()
for steps, count in ((x.shape[0], x.shape[1]), (3, 2), (1, 1)):
    got, last = program(x[:steps, :count], tuple(a.narrow(d, 0, count) for a, d in state))
    torch.testing.assert_close(got, y[:steps, :count], rtol=1e-5, atol=1e-5)
torch.testing.assert_close(program(x, tuple(a for a, _ in state))[1], after, rtol=1e-5, atol=1e-5)
print("equal")
"""


def in_a_fresh_process(folder: Path, est, x, kind: str) -> None:
    """Compare a program with predict, in a process that has the operators but not fastseq."""
    _, states = load(folder / "model.pt2")
    count = x.shape[1]
    first = tuple((a, s["batch_dim"]) for a, s in zip(start(states, count), states, strict=True))
    y = torch.from_numpy(est.predict(x))
    after = tuple(torch.utils._pytree.tree_leaves(est.get_state()))
    after = tuple(a for a in after if a is not None)
    torch.save((x, first, y, after), folder / "data.pt")
    library = sys.modules["fastseq._C"].__file__
    done = subprocess.run(
        [sys.executable, "-c", FRESH, library, kind],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr


def test_reloaded_without_fastseq(tmp_path):
    est = estimator(fs.nn.Chain(Small(), Sums(5, 4), fs.nn.LSTM(4, 4), nn.Linear(4, 1)))
    x = torch.randn(12, 5, 3)
    est.export(tmp_path / "model.pt2", torch.zeros(2, 2, 3))
    in_a_fresh_process(tmp_path, est, x, "program")


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, 4, num_layers=2),
        nn.GRU(3, 4),
        nn.RNN(3, 4, nonlinearity="relu"),
        fs.nn.LSTM(3, 4, trainable_state=True),
        fs.nn.GRU(3, 4, num_layers=2, dropout=0.5, trainable_state=True),
    ],
    ids=str,
)
def test_recurrent_layers(tmp_path, layer):
    kind = type(layer)
    for name, p in layer.named_parameters():
        if name in ("h0", "c0"):
            nn.init.normal_(p)
    est = estimator(fs.nn.Chain(layer, nn.Linear(4, 1)))
    est.export(tmp_path / "model.pt2", torch.zeros(2, 2, 3))
    assert type(layer) is kind
    program, states = load(tmp_path / "model.pt2")
    assert all(s["batch_dim"] == 1 for s in states)
    for steps, count in [(1, 1), (9, 1), (30, 7)]:
        x = torch.randn(steps, count, 3)
        y, after = program(x, start(states, count))
        torch.testing.assert_close(y, torch.from_numpy(est.predict(x)), rtol=1e-5, atol=1e-6)
        expected = est.get_state()[0]
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)
        y, _ = program(x, after)  # goes on
        more = torch.from_numpy(est.predict(x, reset=False))
        torch.testing.assert_close(y, more, rtol=1e-5, atol=1e-6)


def test_layers_that_look_at_later_steps_take_whole_series(tmp_path):
    est = estimator(fs.nn.Chain(nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1)))
    est.export(tmp_path / "model.pt2", torch.zeros(2, 2, 3))
    program, states = load(tmp_path / "model.pt2")
    assert states == []
    x = torch.randn(30, 7, 3)
    expected = torch.from_numpy(est.predict(x))
    torch.testing.assert_close(program(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # of PyTorch about itself
def test_compiled_ahead_of_time(tmp_path):
    est = estimator(fs.nn.Chain(Small(), fs.nn.LSTM(5, 4), nn.GRU(4, 4), nn.Linear(4, 1)))
    x = torch.randn(12, 5, 3)
    est.export(tmp_path / "model.pt2", x)
    torch._inductor.aoti_compile_and_package(
        torch.export.load(tmp_path / "model.pt2"), package_path=str(tmp_path / "compiled.pt2")
    )
    in_a_fresh_process(tmp_path, est, x, "compiled")


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("model.pb", ValueError, r"path must end in \.pt2"),
        ("no/model.pt2", FileNotFoundError, "a folder that exists"),
    ],
)
def test_wrong_paths(tmp_path, path, error, message):
    with pytest.raises(error, match=message):
        estimator(Sums()).export(tmp_path / path, torch.zeros(2, 2, 3))


def test_an_example_is_needed_before_data_were_seen(tmp_path):
    with pytest.raises(ValueError, match="export needs an example x"):
        estimator(Sums()).export(tmp_path / "model.pt2")


class Steps(nn.Module):
    def forward(self, x):
        return torch.stack([x_t * 2 for x_t in x])


class Grows(nn.Module):
    def forward(self, x, state):
        state = x if state is None else torch.cat([state, x])
        return x, state


class Counts(nn.Module):
    """Starts at one, but does not say so."""

    def forward(self, x, state):
        state = x.new_ones(x.shape[1]) if state is None else state
        last = x[-1].sum(1)
        return x + state[:, None], state + last


@pytest.mark.filterwarnings("ignore:.*with projections is not supported with oneDNN:UserWarning")
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of what fails anyway
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Steps(), "cannot be exported for any number of time steps"),
        (Grows(), "state grows with time"),
        (Counts(), "its initial state is neither zeros"),
        (nn.LSTM(3, 4, proj_size=2), "recurrent layers would be unrolled over time .* proj"),
    ],
)
def test_models_that_cannot_be_exported(tmp_path, model, message):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"older")
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    est = estimator(model)
    with pytest.raises(ValueError, match=message):
        est.export(path, torch.zeros(2, 2, 3))
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.slow
@pytest.mark.mpi
def test_rank_0_writes_and_all_fail_together(tmp_path):
    script = """
    import sys, torch, fastseq as fs
    model = torch.nn.Sequential(torch.nn.Linear(3, 1))
    est = fs.Estimator(model, fs.seqloss(torch.nn.MSELoss()), torch.optim.SGD, dict(epochs=1, batchsize=2, seqsize=2))
    rank = fs.distributed.world().rank
    est.export("model.pt2", torch.zeros(2, 2, 3))
    print("there", torch.export.load("model.pt2").module()(torch.zeros(4, 5, 3)).shape)
    try:
        est.export("no/model.pt2" if rank == 0 else "model.pt2", torch.zeros(2, 2, 3))
    except (FileNotFoundError, fs.RemoteError) as error:
        print("failed", type(error).__name__)
    """
    done = mpirun(tmp_path, 2, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there torch.Size([4, 5, 1])") == 2
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("failed")) == [
        "failed FileNotFoundError", "failed RemoteError",
    ]  # fmt: skip
