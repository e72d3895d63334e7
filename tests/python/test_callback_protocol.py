"""What callbacks see of a fit, in which order, and how they end it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.callbacks import Callback, Checkpoint

X = torch.randn(23, 5, 2, generator=torch.Generator().manual_seed(0))
Y = X.mean(2, keepdim=True)
SPEC = {"epochs": 3, "batchsize": 2, "seqsize": 10}  # 3 blocks of 3 chunks


def estimator(*callbacks, **spec):
    torch.manual_seed(0)
    model = fs.nn.Chain(nn.GRU(2, 3), nn.Linear(3, 1))
    return fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=0.1), SPEC | spec,
        callbacks=callbacks, progress=False, comm=None,
    )  # fmt: skip


class Told(Callback):
    def __init__(self):
        self.calls = []

    def on_fit_begin(self, run):
        self.calls.append(("begin", run.epoch, run.epochs, run.chunks, run.updates_per_epoch))

    def on_epoch_begin(self, run):
        self.calls.append(("epoch", run.epoch, run.chunk, run.updates))

    def on_batch_end(self, run):
        self.calls.append(("batch", run.epoch, run.chunk, run.updates))
        assert run.loss > 0

    def on_epoch_end(self, run):
        self.calls.append(("end", run.epoch, run.chunk, run.updates))
        assert run.row is run.history[-1]
        assert run.row["epoch"] == run.epoch

    def on_fit_end(self, run):
        self.calls.append(("fit end", run.epoch, run.stopped, run.error))


def test_hooks_are_called_in_order_with_what_is_done():
    told = Told()
    est = estimator(told).fit(X, Y, epochs=2)
    est.fit(X, Y, epochs=1)
    expected = [("begin", 0, 2, 9, 9)]
    for epoch in (1, 2, 3):
        if epoch == 3:
            expected += [("fit end", 2, None, None), ("begin", 2, 3, 9, 9)]
        first = 9 * (epoch - 1)
        expected += [("epoch", epoch, 0, first)]
        expected += [("batch", epoch, i, first + i) for i in range(1, 10)]
        expected += [("end", epoch, 9, first + 9)]
    assert told.calls == [*expected, ("fit end", 3, None, None)]
    assert est.stop_reason_ is None


def test_functions_and_plain_objects_are_callbacks_too():
    seen = []

    class Plain:
        def on_epoch_end(self, run):
            seen.append(run.row["loss"])

    est = estimator(lambda run: run.row.update(twice=2 * run.row["loss"]), Plain()).fit(X, Y)
    assert [row["twice"] for row in est.history_] == [2 * loss for loss in seen]
    assert len(seen) == 3


@pytest.mark.parametrize("bad", [[3], [Callback], [Checkpoint("run")], "text", Callback(), 3])
def test_what_is_no_callback_is_refused(bad):
    with pytest.raises(TypeError, match="callbacks must be"):
        fs.Estimator(nn.GRU(2, 1), fs.seqloss(mse_loss), torch.optim.SGD, SPEC, callbacks=bad)


def test_all_callbacks_of_an_epoch_have_their_turn_before_a_stop():
    told = Told()
    est = estimator(lambda run: run.stop("enough") if run.epoch == 2 else None, told).fit(X, Y)
    assert est.stop_reason_ == "enough"
    assert told.calls[-2:] == [("end", 2, 9, 18), ("fit end", 2, "enough", None)]
    assert len(est.history_) == 2
    est.fit(X, Y, epochs=1)  # goes on, and says so
    assert est.stop_reason_ is None
    assert len(est.history_) == 3


def test_a_stop_within_an_epoch_leaves_it_out_of_the_history():
    class Stop(Callback):
        def on_batch_end(self, run):
            if run.updates == 12:
                run.stop("at once")

    told = Told()
    est = estimator(Stop(), told).fit(X, Y)
    assert told.calls[-2:] == [("batch", 2, 4, 13), ("fit end", 2, "at once", None)]
    assert len(est.history_) == 1


def test_errors_reach_on_fit_end_of_those_that_began_last_first():
    order = []

    class Named(Callback):
        def __init__(self, name):
            self.name = name

        def on_fit_begin(self, run):  # noqa: ARG002
            if self.name == "c":
                raise OSError("no disk")

        def on_fit_end(self, run):
            order.append((self.name, str(run.error)))

    with pytest.raises(OSError, match="no disk"):
        estimator(Named("a"), Named("b"), Named("c"), Named("d")).fit(X, Y)
    assert order == [("c", "no disk"), ("b", "no disk"), ("a", "no disk")]


def test_a_request_comes_with_the_next_update():
    seen = []

    class Ask(Callback):
        def on_batch_end(self, run):
            seen.append((run.updates, sorted(run.requests)))
            if run.updates in (4, 9):  # in the middle, and with an epoch's last update
                run.request("checkpoint")

    class EpochEnd(Callback):
        def on_epoch_end(self, run):
            seen.append(("end", sorted(run.requests)))

    estimator(Ask(), EpochEnd()).fit(X, Y, epochs=2)
    asked = [entry for entry in seen if entry[1]]
    assert asked == [(5, ["checkpoint"]), ("end", ["checkpoint"])]
    assert len(seen) == 20


@pytest.mark.parametrize("accumulate", [2, 3, 4, 9, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_updates_are_those_of_a_plain_loop(accumulate, weighted):
    w = torch.rand(23, 5, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    told = Told()
    est = estimator(told, accumulate=accumulate).fit(X, Y, w if weighted else None, epochs=2)

    torch.manual_seed(0)
    model = fs.nn.Chain(nn.GRU(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means, counts = [], []
    for _ in range(2):
        held, weights, sums, count = 0, 0.0, [0.0, 0.0], 0
        for n in range(0, 5, 2):
            state = None
            for t in range(0, 23, 10):
                y, state = model(X[t : t + 10, n : n + 2], state)
                state = state[0].detach(), None  # of the GRU, of the linear layer
                ws = w[t : t + 10, n : n + 2] if weighted else torch.ones(y.shape[:2])
                loss = (ws * (y - Y[t : t + 10, n : n + 2]).square().squeeze(2)).sum()
                loss.backward()
                held += 1
                weights += ws.sum().item()
                sums[0] += loss.item()
                sums[1] += ws.sum().item()
                if held == accumulate or (n, t) == (4, 20):
                    for p in model.parameters():
                        p.grad /= weights
                    optimizer.step()
                    optimizer.zero_grad()
                    held, weights = 0, 0.0
                    count += 1
        means.append(sums[0] / sums[1])
        counts.append(count)
    for a, b in zip(est.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert [row["loss"] for row in est.history_] == pytest.approx(means, rel=1e-5)
    assert [row["updates"] for row in est.history_] == counts
    assert est.history_.updates == sum(counts)
    updates = [call for call in told.calls if call[0] == "batch"]
    assert [call[3] for call in updates] == [*range(1, sum(counts) + 1)]
    assert [call[2] for call in updates] == 2 * [*range(accumulate, 9, accumulate), 9]
    assert told.calls[0] == ("begin", 0, 2, 9, counts[0])
