"""Runs of fit, drawn at random, on several ranks and in one process that has all their sequences in its batch.

``mpirun -n 3 python tests/python/drawn_runs.py 17`` repeats number 17 of 3 ranks; ``… 0 100`` runs the first hundred.
"""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from typing import Any

import numpy as np
import torch
from models import Custom
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, smooth_l1_loss

import fastseq as fs

FEATURES, CLASSES = 3, 4


class CausalConvolution(nn.Module):
    """Its state: the last steps of the chunk before."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Conv1d(FEATURES, outputs, 3)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(2, *x.shape[1:])
        x = torch.cat([state, x])
        return self.inner(x.permute(1, 2, 0)).permute(2, 0, 1), x[-2:]


class Centred(nn.Module):
    """Keeps a running mean of what it sees in training, which counts in predictions."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, outputs)
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.head(x - self.mean)
        with torch.no_grad():
            self.mean.mul_(0.8).add_(x.mean((0, 1)), alpha=0.2)
        return self.head(x)


def recurrent(layer: Any, **more: Any) -> Any:
    return lambda outputs: fs.nn.Chain(layer(FEATURES, 5, **more), nn.Linear(5, outputs))


MODELS: dict[str, Any] = {
    "LSTM": recurrent(fs.nn.LSTM),
    "two GRUs": recurrent(fs.nn.GRU, num_layers=2),
    "RNN": recurrent(fs.nn.RNN),
    "torch's LSTM": recurrent(nn.LSTM),
    "torch's GRU": recurrent(nn.GRU),
    "linear": lambda outputs: nn.Linear(FEATURES, outputs),
    "perceptron": lambda outputs: nn.Sequential(
        nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)
    ),
    "custom": lambda outputs: fs.nn.Chain(Custom(FEATURES), nn.Linear(1, outputs)),
    "convolution": CausalConvolution,
    "centred": Centred,
}


def own_loss(m: Any, xs: Tensor, ys: Tensor, ws: Tensor | None = None) -> Tensor:
    """Return the weighted mean of something of one's own, and a penalty that no data enter."""
    error = (m(xs) - ys).square().add(0.1).sqrt()
    ws = torch.ones_like(ys) if ws is None else ws.reshape(*ws.shape[:2], -1).expand_as(error)
    return (error * ws).sum() / ws.sum() + 1e-3 * m.module[-1].weight.square().sum()


LOSSES: dict[str, Any] = {
    "squares": fs.seqloss(mse_loss),
    "Huber": fs.seqloss(smooth_l1_loss),
    "classes": fs.seqloss(cross_entropy),
    "own": own_loss,
}
OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
}


def draw(number: int, ranks: int) -> dict[str, Any]:
    """Return what `run` takes: the run number `number` on `ranks` ranks."""
    rng = random.Random(1000 * ranks + number)  # noqa: S311
    wide = rng.random() < 0.7
    drawn: dict[str, Any] = {
        "seed": number,
        "dtype": "float64" if wide else "float32",
        "model": rng.choice([*MODELS]),
        "loss": rng.choice([*LOSSES]),
        # AdamW divides by what may be nothing but rounding.
        "optimizer": rng.choice([*OPTIMIZERS]) if wide else "momentum",
        "steps": rng.randint(1, 24),
        "count": rng.randint(1, 13),
        "w": rng.choice([None, None, "sequences", "all", "zeros"]),
        "mask": rng.choice([None, None, "some", "series"]),
        "lengths": rng.random() < 0.25,
        "missing": rng.random() < 0.25,
    }
    spec = {
        "epochs": rng.randint(1, 3),
        "batchsize": rng.randint(1, 4),
        "seqsize": rng.choice([1, 2, 5, 7, 30]),
        "shuffle": rng.random() < 0.5,
        "accumulate": rng.choice([1, 1, 2, 3]),
        "fold": min(rng.choice([1, 1, 1, 2, 3]), drawn["steps"]),
        "clip_norm": rng.choice([None, None, 0.02]),
        "clip_value": rng.choice([None, None, 0.01]),
        "nan": "mask" if drawn["missing"] else rng.choice(["raise", "mask", "keep"]),
        "scale_x": rng.choice([None, "standard", "robust"]),
        "scale_y": None if drawn["loss"] == "classes" else rng.choice([None, "standard"]),
    }
    if (
        drawn["model"] in ("linear", "perceptron", "convolution", "centred")
        and drawn["loss"] == "own"
    ):
        drawn["loss"] = "squares"  # its penalty wants a chain
    if drawn["lengths"]:
        spec["fold"] = 1
    if (
        rng.random() < 0.2
    ):  # as folded to as many pieces in one process, where these are in one block
        drawn |= {"lengths": False, "steps": ranks * rng.randint(1, 6)}
        spec |= {"shard": "time", "fold": 1, "batchsize": drawn["count"], "shuffle": False}
    if drawn["model"] == "centred":  # means of ranks are as good as one where all see as much
        spec |= {"shard": "sequences", "seqsize": drawn["steps"]}
        drawn |= {"count": spec["batchsize"] * ranks * rng.randint(1, 2)}
        drawn |= {"w": None, "mask": None, "lengths": False, "missing": False}
    return {**drawn, "spec": spec}


def data(drawn: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return x, y, and what else fit takes."""
    rng = np.random.default_rng(drawn["seed"])
    steps, count = drawn["steps"], drawn["count"]
    x = 2 + 3 * rng.standard_normal((steps, count, FEATURES))
    y = np.cumsum(x[..., :2] - 2, 0) + 0.3 * rng.standard_normal((steps, count, 2))
    if drawn["loss"] == "classes":
        y = rng.integers(0, CLASSES, (steps, count))
    more: dict[str, Any] = {}
    weights = rng.uniform(0.2, 2, (steps, count))
    if drawn["w"] == "sequences":
        more["w"] = weights[0]
    elif drawn["w"] is not None:
        more["w"] = weights * (rng.random((steps, count)) < 0.5 if drawn["w"] == "zeros" else 1)
        more["w"][:, -1] = 1
    if drawn["mask"] is not None:
        shape = (steps, count) if drawn["mask"] == "some" else (1, count)
        more["mask"] = np.broadcast_to(rng.random(shape) < 0.6, (steps, count)).copy()
        more["mask"][:, -1] = True
        if y.dtype.kind == "f":
            y[~more["mask"]] = np.nan
    if drawn["lengths"]:
        more["lengths"] = rng.integers(0, steps + 1, count)
        more["lengths"][-1] = steps
    if drawn["missing"]:
        x[rng.random(x.shape) < 0.1] = np.nan
        x[:, -1] = 1.5
        if y.dtype.kind == "f":
            y[rng.random(y.shape) < 0.1] = np.nan
            y[:, -1] = -0.5
    dtype = np.dtype(drawn["dtype"])
    return x.astype(dtype), y.astype(dtype) if y.dtype.kind == "f" else y, more


def run(drawn: dict[str, Any], comm: Any) -> tuple[fs.Estimator, Any, float]:
    """Fit, predict and evaluate; `comm` may be a number of ranks that one process stands for."""
    spec = dict(drawn["spec"])
    if isinstance(comm, int):
        spec["batchsize"] *= comm
        if spec.pop("shard", None) == "time":
            spec["fold"] = comm
        comm = None
    torch.manual_seed(drawn["seed"])
    outputs = CLASSES if drawn["loss"] == "classes" else 2
    model = MODELS[drawn["model"]](outputs).to(getattr(torch, drawn["dtype"]))
    est = fs.Estimator(
        model, LOSSES[drawn["loss"]], OPTIMIZERS[drawn["optimizer"]], spec,
        comm=comm, progress=False, seed=drawn["seed"], device="cpu",
    )  # fmt: skip
    x, y, more = data(drawn)
    est.fit(x, y, **more)
    clean = np.nan_to_num(x)
    return est, est.predict(clean), est.evaluate(clean, np.nan_to_num(y))


def close(found: Any, wanted: Any, rtol: float, what: str) -> None:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * scale, err_msg=what)


def compare(many: tuple[Any, Any, float], one: tuple[Any, Any, float], dtype: str) -> None:
    rtol = 1e-9 if dtype == "float64" else 2e-5
    found, wanted = (est.model.state_dict() for est in (many[0], one[0]))
    for name, value in wanted.items():
        close(found[name], value, rtol, name)
    for key in ("loss", "updates"):
        close(*([row[key] for row in est.history_] for est in (many[0], one[0])), rtol, key)
    close(many[1], one[1], 10 * rtol, "predictions")
    close(many[2], one[2], 10 * rtol, "evaluated")


def attempt(function: Any) -> Any:
    """Return what it does, or its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()
    except Exception as error:
        return error


def main(first: int, last: int) -> None:
    """Ranks take turns at being the one process."""
    comm = fs.distributed.world()
    torch.set_num_threads(1)
    for number in range(first, last):
        drawn = draw(number, comm.size)
        many = attempt(lambda: run(drawn, comm))  # noqa: B023
        if number % comm.size == comm.rank:
            one = attempt(lambda: run(drawn, comm.size))  # noqa: B023
            try:
                for each in (many, one):
                    if isinstance(each, Exception):
                        raise each
                compare(many, one, drawn["dtype"])
            except Exception:
                print(f"FAILED {number} of {comm.size} ranks: {drawn}", flush=True)
                print(traceback.format_exc(), flush=True)
        if not isinstance(many, Exception):
            mine = fs.net2vec(many[0].model).detach()
            if not torch.equal(comm.broadcast_(mine.clone()), mine):
                print(f"FAILED {number}: ranks differ: {drawn}", flush=True)
    print("compared", flush=True)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(numbers[0], numbers[1] if len(numbers) > 1 else numbers[0] + 1)
