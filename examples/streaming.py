"""Watch machines live: a model predicts the next value of each, a step at a time.

A model learns the signals of 32 machines. Then values arrive one by one: `step` carries the state
of every machine along, in microseconds. From the middle on, one machine is out of order, and the
errors of its predictions show it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import mse_loss

import fastseq as fs

MACHINES, BROKEN, CHANGE = 32, 5, 200


def draw_signals(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Return signals, ``(T, N, 1)``: two waves each, and noise."""
    t = np.arange(steps)[:, None]
    rates = np.linspace(0.15, 0.45, MACHINES)
    signals = (
        np.sin(rates * t)
        + 0.5 * np.sin(2.7 * rates * t + 1)
        + rng.normal(0, 0.1, (steps, MACHINES))
    )
    return signals[:, :, None].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("streaming.png"))
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    signals = draw_signals(1000, rng)
    model = fs.nn.Chain(fs.nn.LSTM(1, 24), torch.nn.Linear(24, 1))
    spec = {"epochs": options.epochs, "batchsize": 16, "seqsize": 40}
    est = fs.Estimator(model, fs.seqloss(mse_loss), lambda p: torch.optim.AdamW(p, lr=5e-3), spec)
    est.progress = False
    est.fit(signals[:-1], signals[1:])

    live = draw_signals(400, rng)
    live[CHANGE:, BROKEN] *= 1.8
    est.reset_state()
    errors = np.zeros((len(live) - 1, MACHINES))
    start = time.perf_counter()
    for t in range(len(live) - 1):
        expected = est.step(live[t])  # (N, 1), what comes next
        errors[t] = np.abs(np.asarray(expected)[:, 0] - live[t + 1, :, 0])
    each = (time.perf_counter() - start) / len(errors)
    print(f"{each * 1e6:.0f} µs for a step of {MACHINES} machines")

    level = np.median(errors[50:CHANGE], axis=0)
    alarm = errors[CHANGE:].mean(0) / level
    print(f"machine {alarm.argmax()} is {alarm.max():.1f} times as far off as before")
    figure = Figure(figsize=(10, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(live[:, BROKEN, 0], lw=1)
    top.set(ylabel=f"signal of machine {BROKEN}")
    _, *others = bottom.plot(errors, color="0.8", lw=0.6)
    (own,) = bottom.plot(errors[:, BROKEN], color="C3", lw=1)
    bottom.set(xlabel="step", ylabel="error of the prediction", ylim=(0, None))
    for ax in (top, bottom):
        begin = ax.axvline(CHANGE, color="0.3", ls=":")
        ax.margins(x=0)
    bottom.legend(
        [own, others[0], begin],
        [f"machine {BROKEN}", "the others", f"machine {BROKEN} is out of order from here on"],
        loc="upper left",
    )
    figure.savefig(options.out, dpi=100)
    print(f"Picture: {options.out} (from step {CHANGE} on, red errors rise above the grey ones)")
    if alarm.argmax() != BROKEN:
        raise SystemExit("the machine that is out of order was not found")


if __name__ == "__main__":
    main()
