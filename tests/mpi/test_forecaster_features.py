"""What forecasters can do beyond points of arrays, on several ranks: as in one process."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastseq as fs

HORIZON = 3
LENGTHS = {"a": 36, "b": 30, "c": 40}


def panel(rng):
    """Return a long frame with covariates and weights, with 12 steps more than the training data."""
    parts = []
    for number, (key, steps) in enumerate(LENGTHS.items()):
        steps += 12
        days = pd.date_range("2024-01-01", periods=steps)
        price = rng.uniform(1, 2, steps)
        y = 5 + number + np.sin(np.arange(steps) * 2 * np.pi / 7) + price
        parts.append(
            pd.DataFrame({
                "unique_id": key, "ds": days, "y": rng.poisson(y).astype(float), "price": price,
                "promotion": rng.choice(["none", "small", "large"], steps),
                "weather": rng.standard_normal(steps), "weight": rng.uniform(0.5, 2, steps),
            })
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def cut(frame, begin, end):
    """Return some steps, counted from the end of the training data."""
    step = frame.groupby("unique_id").cumcount() - frame["unique_id"].map(LENGTHS)
    return frame[(step >= begin) & (step < end)]


STATIC = pd.DataFrame(
    {"size": [1.0, 2.0, 3.0], "region": ["north", "south", "north"]}, index=[*LENGTHS]
)
AHEAD = ["unique_id", "ds", "price", "promotion"]
KINDS = {
    "points": {"transform": "log1p", "loss": "mse", "half_life": 30, "validation": 6},
    "split": {
        "transform": "sqrt", "quantiles": (0.1, 0.5, 0.9), "conformal": "split", "ensemble": 2,
        "horizon_weights": (1.0, 2.0, 1.0),
    },
    "adaptive": {"quantiles": (0.2, 0.8), "conformal": "adaptive", "scale": "standard"},
    "lstm": {"module": "lstm", "seqsize": 16, "ensemble": 2},
}  # fmt: skip


def forecaster(comm, batchsize, **kw):
    kw = {"random_state": 0, **kw}
    return fs.SequenceForecaster(
        HORIZON, epochs=2, batchsize=batchsize, hidden_size=8, dropout=0.0, comm=comm, device="cpu",
        **kw,
    )  # fmt: skip


def outcomes(comm, batchsize, kind):
    """Return all that a forecaster returns over its life."""
    frame = panel(np.random.default_rng(0))
    weighted = kind in ("points", "split")
    frame = frame if weighted else frame.drop(columns="weight")
    f = forecaster(comm, batchsize, past=("weather",), calendar=["day_of_week"], **KINDS[kind])
    f.fit(cut(frame, -99, 0), static=STATIC, weights="weight" if weighted else None)
    frame = frame.drop(columns="weight", errors="ignore")
    later, then = cut(frame, 0, 6), cut(frame, 6, 9)
    found = {
        "forecast": f.predict(X=cut(frame, 0, HORIZON)[AHEAD]),
        "longer": f.predict(X=cut(frame, 0, 5)[AHEAD], horizon=5),
        "again": f.predict(cut(frame, -99, 0), cut(frame, 0, HORIZON)[AHEAD], static=STATIC),
        "measures": f.evaluate(later),
    }
    f.partial_fit(later)
    found["learnt on"] = f.predict(X=cut(frame, 6, 6 + HORIZON)[AHEAD])
    if kind == "adaptive":
        f.update(then)
    else:
        f.update(then[then["unique_id"] != "b"]).update(then[then["unique_id"] == "b"])
    found["updated"] = f.predict(X=cut(frame, 9, 9 + HORIZON)[AHEAD])
    loss = [row["loss"] for row in f.history_]
    numbers = {name: one.select_dtypes("number").to_numpy() for name, one in found.items()}
    return {**numbers, "loss": np.array(loss)}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_do_what_one_process_does(comm, kind):
    found = outcomes("auto", 1, kind)
    alone = outcomes(None, comm.size, kind)
    for name, own in found.items():
        assert comm.broadcast_bytes(own.tobytes(), 0) == own.tobytes(), name
        np.testing.assert_allclose(own, alone[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert not np.allclose(alone["forecast"], alone["learnt on"], rtol=1e-2)


def test_an_epoch_of_many_windows_draws_the_same_ones(comm, monkeypatch):
    monkeypatch.setattr("fastseq.sklearn.forecasting.automatic_settings._DRAWN", 100)
    y = [np.sin(np.arange(60) / size) for size in (2, 3, 4, 5)]

    def history(comm, batchsize):
        f = forecaster(comm, batchsize, random_state=None).fit(y)
        return [row["updates"] for row in f.history_], np.stack(f.predict())

    updates, found = history("auto", 1)
    assert updates == [-(-13 // comm.size)] * 2  # 13 segments of 8 steps
    assert comm.broadcast_bytes(found.tobytes(), 0) == found.tobytes()


class Breaks(fs.callbacks.Callback):
    def on_batch_end(self, run):
        if run.rank == 0:
            raise ArithmeticError("broken")


def test_errors_reach_all_ranks(comm):
    y = [np.sin(np.arange(60) / size) for size in (2, 3, 4)]
    f = forecaster("auto", 1)
    with pytest.raises(ValueError, match="infinite"):
        f.fit([*y, np.full(60, np.inf)])
    with pytest.raises((ArithmeticError, fs.RemoteError), match="broken"):
        f.set_params(callbacks=[Breaks()]).fit(y)
    f.set_params(callbacks=[]).fit(y)
    before = np.stack(f.predict())
    if comm.size > 1:
        with pytest.raises(ValueError, match="differs between ranks"):
            f.partial_fit([np.ones(3 + comm.rank)] * 3)
    np.testing.assert_array_equal(np.stack(f.predict()), before)
