"""Forecasters on several ranks: one process's, to rounding, and the same bits on all of them."""

from __future__ import annotations

import numpy as np
import pytest

import fastseq as fs


@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"season": 7, "lags": 3, "quantiles": (0.1, 0.5, 0.9)},
        {"strategy": "recursive", "quantiles": (0.1, 0.9)},
    ],
)
def test_ranks_do_what_one_process_does(comm, kw):
    rng = np.random.default_rng(0)
    y = [np.sin(np.arange(n) / 4) + 0.1 * rng.standard_normal(n) for n in (60, 80, 40, 50, 30)]
    y[1][20:30] = np.nan
    x = [rng.standard_normal((len(s) + 6, 2)) for s in y]

    def forecast(comm, batchsize):
        f = fs.SequenceForecaster(
            6, epochs=3, batchsize=batchsize, seqsize=16, hidden_size=8, dropout=0.0, comm=comm,
            random_state=0, device="cpu", **kw,
        )  # fmt: skip
        f.fit(y, [known[:-6] for known in x])
        found = f.predict(X=[known[-6:] for known in x])
        np.testing.assert_allclose(f.predict(y, x), found, rtol=1e-4, atol=1e-4)
        return found, f.history_[-1]["loss"]

    found, loss = forecast("auto", 1)
    assert comm.broadcast_bytes(found.tobytes(), 0) == found.tobytes()
    alone, loss_alone = forecast(None, comm.size)
    np.testing.assert_allclose(loss, loss_alone, rtol=1e-5)
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-3)
