"""Search for a network's size and learning rate by Optuna, and stop poor trials early.

The task is to add up the marked numbers of a noisy series. The search space is a YAML file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure

import fastseq as fs

SPACE = """
module: [gru, lstm]
hidden_size: {low: 4, high: 32, log: true}
lr: {low: 1.0e-3, high: 1.0e-1, log: true}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("search.png"))
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 20)).astype(np.float32)
    marks = (rng.random((500, 20)) < 0.2).astype(np.float32)
    x, y = np.stack([values, marks], 2), (values * marks).sum(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.yaml"
        path.write_text(SPACE)
        space = fs.SearchSpace(path)

    def objective(trial: optuna.Trial) -> float:
        model = fs.SequenceRegressor(
            **space.suggest(trial), epochs=12, validation_fraction=0.2, schedule=None,
            callbacks=[fs.callbacks.OptunaPruning(trial)], random_state=0,
        )  # fmt: skip
        return min(row["validation_loss"] for row in model.fit(x, y).history_)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
    )
    study.optimize(objective, n_trials=options.trials)
    print(f"best: {study.best_params}, validation loss {study.best_value:.4f}")

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for trial in study.trials:
        pruned = trial.state == optuna.trial.TrialState.PRUNED
        curve = sorted(trial.intermediate_values.items())
        best = trial.number == study.best_trial.number
        color, label = ("C3", "best") if best else ("0.7", "stopped") if pruned else ("C0", "ended")
        ax.plot(*zip(*curve, strict=True), color=color, lw=2 if best else 1, label=label)
    ax.set(xlabel="epoch", ylabel="validation loss (mean squared error)", yscale="log")
    kinds = dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))  # each once
    ax.legend(kinds.values(), kinds, title="trials", frameon=False)
    figure.savefig(options.out, dpi=100)
    print(f"Picture: {options.out} (grey: trials that were worse than most, and were stopped)")


if __name__ == "__main__":
    main()
