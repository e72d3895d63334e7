"""Every criterion against losses whose stopping epoch is computed by hand."""

from __future__ import annotations

import copy
import datetime
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from models import adamw, chain
from scripted import ScriptedRun, play, row, through_a_file
from torch.nn.functional import mse_loss

import fastseq as fs

cb = fs.callbacks

# epoch           1    2    3    4    5    6    7    8     9    10   11   12
LOSSES = [5.0, 4.0, 3.0, 3.3, 3.6, 3.1, 2.9, 2.95, 3.0, 3.2, 3.2, 3.5]
# since best      0    0    0    1    2    3    0    1     2    3    4    5
# rises in a row  0    0    0    1    2    0    0    1     2    3    0    1
# GL, %           0    0    0    10   20   3.33 0    1.72  3.45 10.3 10.3 20.7
TRAINING = [4.0, 3.0, 2.0, 2.2, 2.1, 1.7, 1.6, 1.6, 1.5, 1.4, 1.3, 1.2]
# progress, k = 2, ‰ 166.7 250  50   23.8 117.6 31.3 0
# GL / progress      0     0    .2   .84  .028  0    stops: no progress
# progress, k = 3, ‰       500  200  50   176.5 129  20.8 44.4 71.4 76.9 83.3
# GL / progress            0    .05  .4   .019  0    .083 .078 .145 .134 .248
ROWS = [row(loss, loss=training) for loss, training in zip(LOSSES, TRAINING, strict=True)]

CASES = [
    (lambda: cb.NumberSinceBest(1), 4),
    (lambda: cb.NumberSinceBest(2), 5),
    (lambda: cb.NumberSinceBest(3), 6),
    (lambda: cb.NumberSinceBest(4), 11),
    (lambda: cb.NumberSinceBest(5), 12),
    (lambda: cb.NumberSinceBest(), None),
    # 2.9 is better than 3.0 by 0.1 only: the best stays that of epoch 3
    (lambda: cb.NumberSinceBest(4, min_delta=0.15), 7),
    (lambda: cb.Patience(1), 4),
    (lambda: cb.Patience(2), 5),
    (lambda: cb.Patience(3), 10),
    (lambda: cb.Patience(4), None),
    (lambda: cb.GL(9.9), 4),
    (lambda: cb.GL(10.1), 5),
    (lambda: cb.GL(20.1), 12),
    (lambda: cb.GL(20.8), None),
    (lambda: cb.PQ(0.15, k=2), 4),
    (lambda: cb.PQ(0.5, k=2), 5),
    (lambda: cb.PQ(0.9, k=2), 8),
    (lambda: cb.PQ(0.04, k=3), 4),
    (lambda: cb.PQ(0.3, k=3), 5),
    (lambda: cb.PQ(0.45, k=3), None),
    (lambda: cb.Threshold(3.05), 3),
    (lambda: cb.Threshold(2.95), 7),
    (lambda: cb.Threshold(2.9), None),  # below, not at
    (lambda: cb.NumberLimit(1), 1),
    (lambda: cb.NumberLimit(7), 7),
    (lambda: cb.NumberLimit(), None),
    (lambda: cb.InvalidValue(), None),
    # What is wrapped sees epochs n + 1 on: 3.1, 2.9, 2.95, …
    (lambda: cb.Warmup(cb.Patience(1), 5), 8),
    (lambda: cb.Warmup(cb.GL(2), 5), 9),
    (lambda: cb.Warmup(cb.NumberSinceBest(2), 3), 9),
    (lambda: cb.Warmup(cb.NumberLimit(3), 2), 5),
    (lambda: cb.Warmup(cb.AnyOf(cb.Threshold(3.05), cb.Patience(3)), 4), 7),
    (lambda: cb.AnyOf(cb.Threshold(2.95), cb.Patience(3)), 7),
    (lambda: cb.AnyOf(cb.Threshold(2.0), cb.Patience(3)), 10),
    # at least two since the best: 5, 6, 9 to 12; below 3.05: 3, 7, 8, 9
    (lambda: cb.AllOf(cb.NumberSinceBest(2), cb.Threshold(3.05)), 9),
    # two rises: 5, 9, 10; GL above 15: 5, 12
    (lambda: cb.AllOf(cb.Patience(2), cb.GL(15)), 5),
    (lambda: cb.AllOf(cb.Patience(2), cb.AnyOf(cb.NumberSinceBest(3), cb.Threshold(2))), 10),
]  # fmt: skip


@pytest.mark.parametrize(("make", "epoch"), CASES)
def test_stopping_epoch(make, epoch):
    assert play(make(), ROWS) == epoch


@pytest.mark.parametrize(("make", "epoch"), CASES)
@pytest.mark.parametrize("loaded_first", [False, True])
def test_resumed_anywhere_it_stops_at_the_same_epoch(make, epoch, loaded_first):
    for done in range(epoch - 1 if epoch else len(ROWS)):
        before, after, run = make(), make(), ScriptedRun()
        assert play(before, ROWS[:done], run) is None
        run.updates = max(run.updates, 1)  # in the middle of the first epoch, if done is 0
        state = through_a_file(before.state_dict())
        if loaded_first:
            after.load_state_dict(state)
        after.on_fit_begin(run)
        if not loaded_first:
            after.load_state_dict(state)
        assert play(after, ROWS[done:], run, begin=False) == epoch


@pytest.mark.parametrize(("make", "epoch"), CASES)
def test_two_calls_of_fit_are_like_one(make, epoch):
    criterion, run = make(), ScriptedRun()
    first = play(criterion, ROWS[:2], run)
    assert (first or play(criterion, ROWS[2:], run)) == epoch
    assert (
        play(criterion, ROWS, ScriptedRun()) == epoch
    )  # starts from scratch with another estimator


@pytest.mark.parametrize(("make", "epoch"), CASES)
def test_copies_have_a_state_of_their_own(make, epoch):
    criterion, run = make(), ScriptedRun()
    if play(criterion, ROWS[:2], run) is None:
        both = copy.deepcopy((criterion, run.history))  # as with all of an estimator
        copied, history = pickle.loads(pickle.dumps(both))  # noqa: S301 (our own)
        play(criterion, ROWS[:5], run)
        again = ScriptedRun()
        again.updates = again.epoch = 2
        again.history = history
        assert play(copied, ROWS[2:], again) == epoch


@pytest.mark.parametrize(
    ("make", "epoch"),
    [
        (lambda **k: cb.NumberSinceBest(2, **k), 5),
        (lambda **k: cb.Patience(3, **k), 10),
        (lambda **k: cb.GL(10.1, **k), 5),  # 100 · (−2 − −3) / |−3|, and so on: the same percents
        (lambda **k: cb.PQ(0.5, k=2, **k), 5),
    ],
)
def test_higher_can_be_better_and_any_number_can_be_watched(make, epoch):
    rows = [{**r, "r2": -r["validation_loss"], "validation_loss": 1.0} for r in ROWS]
    assert play(make(monitor="r2", mode="max"), rows) == epoch


def test_threshold_from_below():
    rows = [{"loss": 1.0, "r2": r2} for r2 in (0.1, 0.5, 0.9, 0.95)]
    assert play(cb.Threshold(0.9, monitor="r2", mode="max"), rows) == 4


def test_equal_is_neither_better_nor_worse():
    rows = [row(2.0)] * 4
    assert play(cb.NumberSinceBest(2), rows) == 3
    assert play(cb.Patience(1), rows) is None
    assert play(cb.GL(1e-9), rows) is None


def test_percents_are_of_the_best_s_size():
    scores = [{"loss": 1.0, "r2": r2} for r2 in (0.5, 1.0, 0.9, 0.8)]
    assert play(cb.GL(15, monitor="r2", mode="max"), scores) == 4  # 20 % below the best
    likelihoods = [row(loss) for loss in (-1.0, -2.0, -1.9, -1.6)]
    assert play(cb.GL(15), likelihoods) == 4


def test_without_validation_the_training_loss_is_watched():
    rows = [{"loss": loss} for loss in LOSSES]
    assert play(cb.Patience(2), rows, ScriptedRun(validation=False)) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_invalid_value(bad):
    assert play(cb.InvalidValue(), [*ROWS[:3], row(bad)]) == 4
    assert play(cb.InvalidValue(monitor="loss"), [*ROWS[:3], row(bad)]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_worse_than_any_number(bad):
    rows = [row(loss) for loss in (bad, 3.0, bad, 2.0, 2.5, bad, bad)]
    assert play(cb.NumberSinceBest(2), rows) == 6  # best: 3, then 2
    assert play(cb.Patience(2), rows) == 6
    assert play(cb.GL(2), rows) == 3
    assert play(cb.Threshold(2.2), rows) == 4
    assert play(cb.PQ(0.5, k=2), [{**r, "loss": 9.0 - e} for e, r in enumerate(rows)]) == 3


def test_a_best_of_zero():
    assert play(cb.GL(50), [row(0.0), row(0.0), row(1e-9)]) == 3
    assert play(cb.PQ(0.5, k=2), [row(2.0, loss=0.0), row(3.0, loss=1.0)]) is None
    # three times 0.1 is more than 0.3
    assert play(cb.PQ(0.5, k=3), [row(2.0 - e, loss=0.1) for e in range(4)]) == 3


def test_time_limit_counts_the_run_s_seconds():
    limit = cb.TimeLimit(datetime.timedelta(minutes=1))
    run = ScriptedRun(updates_per_epoch=3)

    def work(run):
        run.seconds += 7

    assert play(limit, ROWS, run, train=work) == 3  # 9 steps: 63 seconds
    assert "60 seconds" in run.stopped
    again = ScriptedRun(updates_per_epoch=3)
    assert play(limit, ROWS[:2], again, train=work) is None  # 42 of a new call
    resumed = ScriptedRun(updates_per_epoch=3)
    resumed.seconds = 42
    assert play(limit, ROWS, resumed, train=work) == 1
    inside = cb.Warmup(cb.TimeLimit(20), 2)
    assert play(inside, ROWS, ScriptedRun(updates_per_epoch=1), train=work) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cb.NumberSinceBest(0), "n must be positive, got 0"),
        (lambda: cb.NumberSinceBest(2.5), "n must be an integer, got 2.5"),
        (lambda: cb.NumberSinceBest(True), "n must be an integer, got True"),
        (lambda: cb.NumberSinceBest(2, min_delta=-1), "min_delta must not be negative, got -1"),
        (lambda: cb.Patience(-1), "n must be positive, got -1"),
        (lambda: cb.GL(0), "alpha must be positive, got 0"),
        (lambda: cb.GL("2"), "alpha must be a number, got '2'"),
        (lambda: cb.GL(math.nan), "alpha must be positive, got nan"),
        (lambda: cb.PQ(k=1), "k must be at least 2"),
        (lambda: cb.PQ(-1), "alpha must be positive, got -1"),
        (lambda: cb.Threshold("low"), "value must be a number, got 'low'"),
        (lambda: cb.NumberLimit(0), "n must be positive, got 0"),
        (lambda: cb.TimeLimit(0), "limit must be positive, got 0"),
        (lambda: cb.TimeLimit("1h"), "limit must be a number, got '1h'"),
        (lambda: cb.Patience(mode="lower"), 'mode must be "min" or "max", got \'lower\''),
        (lambda: cb.Patience(monitor=3), "monitor must be the name of a number"),
        (lambda: cb.Warmup(cb.Patience(2), 0), "n must be positive, got 0"),
        (lambda: cb.Warmup(cb.Log(), 3), "Warmup takes criteria such as NumberSinceBest"),
        (lambda: cb.AnyOf(), "AnyOf needs at least one criterion"),
        (lambda: cb.AllOf(3), "AllOf takes criteria such as"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_number_that_will_not_be_there():
    run = ScriptedRun(validation=False)
    for criterion in (
        cb.Patience(monitor="validation_r2"),
        cb.AnyOf(cb.GL(monitor="validation_r2")),
        cb.RestoreBest(monitor="validation_r2"),
    ):
        with pytest.raises(ValueError, match="needs validation data: pass validation"):
            criterion.on_fit_begin(run)
    with pytest.raises(ValueError, match='"r2" is not in the history, which has epoch, loss'):
        play(cb.Patience(monitor="r2"), ROWS)


def fit(*callbacks, epochs=6, lr=None, validation=0.25, data=None):
    """Fit a small model; the learning rate of epoch i is lr[i], if given."""
    x = torch.randn(20, 8, 3, generator=torch.Generator().manual_seed(5)) if data is None else data
    torch.manual_seed(0)
    est = fs.Estimator(
        chain(), fs.seqloss(mse_loss), adamw, fs.Spec(epochs, 3, 7), seed=1, progress=False,
        callbacks=callbacks,
    )  # fmt: skip
    return est.fit(x, x.mean(2, keepdim=True), validation=validation)


def test_fit_stops_and_says_why():
    est = fit(cb.NumberLimit(3))
    assert len(est.history_) == 3
    assert est.stop_reason_ == "3 epochs are done"
    est = fit(cb.NumberLimit(7))
    assert len(est.history_) == 6
    assert est.stop_reason_ is None


def test_fit_stops_where_its_losses_say():
    whole = [row["validation_loss"] for row in fit().history_]
    limit = (whole[2] + whole[3]) / 2  # falling
    assert whole == sorted(whole, reverse=True)
    assert len(fit(cb.Threshold(limit)).history_) == 4
    assert len(fit(cb.Warmup(cb.Threshold(1e9), 2)).history_) == 3
    stopped = fit(cb.NumberSinceBest(2, mode="max"))  # falling is bad here
    assert len(stopped.history_) == 3
    assert [row["validation_loss"] for row in stopped.history_] == whole[:3]


def test_time_limit_ends_an_epoch_that_takes_too_long():
    chunks = []

    class Count(cb.Callback):
        def on_batch_end(self, run):
            chunks.append(run.chunk)

    est = fit(cb.TimeLimit(1e-9), Count())
    assert chunks == [1, 2]  # asked for after the first update, done after the next
    assert len(est.history_) == 0
    assert est.stop_reason_ == "the time limit of 1e-09 seconds is reached"


def test_users_functions_stop_too():
    est = fit(lambda run: run.stop("enough") if run.row["epoch"] == 2 else None)
    assert len(est.history_) == 2
    assert est.stop_reason_ == "enough"


def test_a_criterion_of_ones_own():
    class Odd(cb.Criterion):
        def update(self, run):
            return "odd" if run.epoch % 2 else None

    assert len(fit(cb.Warmup(Odd(), 3)).history_) == 5
    assert len(fit(cb.AllOf(Odd(), cb.Warmup(cb.NumberLimit(1), 1))).history_) == 3


def test_the_guide_lists_all_callbacks():
    guide = Path(__file__).parents[2] / "docs" / "callbacks.md"
    table = guide.read_text().split("## All callbacks")[1]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(cb.__all__) <= set(re.findall(r"`(\w+)", " ".join(first)))
