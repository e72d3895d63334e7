"""What `SequenceRegressor` adds to `Estimator`, and a grid search with it and with skorch.

All contenders learn the same: same weights to begin with, same order of samples, same optimizer.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from harness import Bench, Mark
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.sklearn import SequenceRegressor

# Of scores (R²), after rounding in other kernels.
SAME_SCORES = 1e-3
FUSED = functools.partial(torch.optim.AdamW, fused=True)


# What the others do: the same learning rate all the time, all samples, as they are.
PLAIN: dict[str, Any] = {
    "schedule": None, "clip_norm": None, "early_stopping": False, "scale_x": None, "scale_y": None,
}  # fmt: skip


def chain(features: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    return fs.nn.Chain(fs.nn.LSTM(features, width), nn.Linear(width, 1))


def overhead(bench: Bench, *, shuffle: bool) -> None:
    """Time the small task of ``bench_fit.py``; all that a call does counts, copies included."""
    steps, sequences, batchsize, seqsize, epochs = 200, 200, 20, 10, 5
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sequences, steps, 10)).astype(np.float32)
    y = x.mean(2, keepdims=True)
    x_core, y_core = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, y))
    model = chain(10, 10)

    def core() -> fs.Estimator:
        own = copy.deepcopy(model)
        spec = {"epochs": epochs, "batchsize": batchsize, "seqsize": seqsize}
        est = fs.Estimator(
            own, fs.seqloss(mse_loss), FUSED(own.parameters(), lr=1e-3, weight_decay=0.0), spec,
            comm=None, seed=0, progress=False,
        )  # fmt: skip
        return est.fit(x_core, y_core)

    wrapper = SequenceRegressor(
        model, epochs=epochs, batchsize=batchsize, seqsize=seqsize, shuffle=shuffle,
        lr=1e-3, weight_decay=0.0, random_state=0, **PLAIN,
    )  # fmt: skip
    if not shuffle:
        mine, its = wrapper.fit(x, y).estimator_.model.parameters(), core().model.parameters()
        if not all(torch.equal(p, q) for p, q in zip(mine, its, strict=True)):
            raise AssertionError("SequenceRegressor learns something else than Estimator")
    name = "SequenceRegressor"
    order = "samples in a new order each epoch" if shuffle else "samples in order"
    bench.compare(
        f"fit: {epochs * steps * sequences // batchsize // seqsize} steps of LSTM(10,10)+Linear, "
        f"batchsize {batchsize}, seqsize {seqsize}, {order}",
        {"Estimator": core, name: lambda: wrapper.fit(x, y)},
        marks=(Mark(name, 1.05),),
    )


class LastStep(nn.Module):
    """What skorch trains: samples first, one output per sequence."""

    def __init__(self, lstm: nn.LSTM, head: nn.Linear) -> None:
        super().__init__()
        self.lstm, self.head = lstm, head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.lstm(x)[0][:, -1])


def search(bench: Bench) -> None:
    """Time 3-fold searches of 4 points, the last fit to all data included."""
    try:
        import skorch
    except ModuleNotFoundError as error:
        bench.say(f"{error}: the search left out (pip install --group bench)")
        return
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 10, 10)).astype(np.float32)
    y = x[:, -3:].mean((1, 2), keepdims=True)[:, :, 0] * 5
    epochs, batchsize, lrs, decays = 15, 20, [3e-3, 1e-2], [0.0, 1e-2]
    ours = chain(10, 10)
    lstm = nn.LSTM(10, 10, batch_first=True)
    lstm.load_state_dict(ours[0].state_dict())
    common: dict[str, Any] = {"cv": 3, "error_score": "raise"}
    wrapper = SequenceRegressor(ours, epochs=epochs, batchsize=batchsize, shuffle=False, **PLAIN)
    fastseq = GridSearchCV(wrapper, {"lr": lrs, "weight_decay": decays}, **common)
    net = skorch.NeuralNetRegressor(
        LastStep(lstm, copy.deepcopy(ours[1])),
        optimizer=torch.optim.AdamW,
        optimizer__fused=True,
        max_epochs=epochs,
        batch_size=batchsize,
        train_split=None,
        callbacks__print_log=None,
        verbose=0,
    )
    theirs = GridSearchCV(net, {"lr": lrs, "optimizer__weight_decay": decays}, **common)
    scores = [s.fit(x, y).cv_results_["mean_test_score"] for s in (fastseq, theirs)]
    if np.abs(scores[0] - scores[1]).max() > SAME_SCORES:
        raise AssertionError(f"scores differ: {scores[0]} and {scores[1]}")
    bench.say(f"scores (R²): {scores[0].round(4)} and {scores[1].round(4)}")
    name = "SequenceRegressor"
    bench.compare(
        f"GridSearchCV, 3 folds, 4 points, {epochs} epochs of LSTM(10,10)+Linear on "
        f"{x.shape} samples, batchsize {batchsize}",
        {"skorch.NeuralNetRegressor": lambda: theirs.fit(x, y), name: lambda: fastseq.fit(x, y)},
        marks=(Mark(name, 1 / 3),),
    )


def main() -> None:
    bench = Bench.from_arguments("wrappers", rounds=20)
    torch.set_num_threads(1)
    for shuffle in (False, True):
        overhead(bench, shuffle=shuffle)
    search(bench)
    bench.write()


if __name__ == "__main__":
    main()
