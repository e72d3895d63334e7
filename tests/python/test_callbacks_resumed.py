"""A run that is interrupted in an epoch, and resumed, decides as one that is not."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss
from torch.optim import lr_scheduler

import fastseq as fs

cb = fs.callbacks
X = torch.randn(15, 8, 3, generator=torch.Generator().manual_seed(5))
Y = X.mean(2, keepdim=True) + 0.5 * torch.randn(
    15, 8, 1, generator=torch.Generator().manual_seed(6)
)


class Rates(cb.Callback):
    """The learning rate of each step."""

    def __init__(self, until=None):
        self.rates, self.until = [], until

    def on_batch_end(self, run):
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        if len(self.rates) == self.until:
            raise KeyboardInterrupt


def controls(folder):
    best = cb.RestoreBest(mode="max")  # losses fall: the first, which is before the interruption
    return best, [
        cb.Warmup(cb.AllOf(cb.NumberLimit(4), cb.NumberSinceBest(2, mode="max")), 2),
        cb.Schedule(
            functools.partial(lr_scheduler.OneCycleLR, max_lr=0.03, total_steps=80), per="update"
        ),
        cb.Snapshots(folder, last=2, best=1, mode="max"),
        best,
    ]


def fit(folder, name, *more, **options):
    torch.manual_seed(0)
    best, callbacks = controls(folder / name)
    est = fs.Estimator(
        chain(), fs.seqloss(mse_loss), adamw, fs.Spec(9, 2, 5), seed=1, progress=False,
        callbacks=[*callbacks, *more],
    )  # fmt: skip
    return best, est.fit(X, Y, validation=0.25, **options)


@pytest.mark.parametrize("steps", [5, 18, 31])
def test_all_go_on_where_they_were(tmp_path, steps):
    rates = Rates()
    best, whole = fit(tmp_path, "whole", rates)
    assert len(whole.history_) == 6  # 2 epochs of warm-up, then 4 that are seen
    assert best.epoch == 1
    kept = [path.name for path in sorted((tmp_path / "whole").iterdir())]
    assert kept == [f"epoch-000{epoch}.safetensors" for epoch in (1, 5, 6)]

    checkpoint = cb.Checkpoint(tmp_path / "run", every_updates=2)
    begun, ended = Rates(steps), Rates()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, "parts", begun, checkpoint=checkpoint)
    best, resumed = fit(tmp_path, "parts", ended, resume=tmp_path / "run")
    assert (best.epoch, resumed.stop_reason_) == (1, whole.stop_reason_)
    taken = len(rates.rates) - len(ended.rates)
    assert 0 < taken <= steps
    assert begun.rates[:taken] + ended.rates == rates.rates
    assert [row["loss"] for row in resumed.history_] == [row["loss"] for row in whole.history_]
    assert torch.equal(fs.net2vec(resumed.model), fs.net2vec(whole.model))
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == kept


def test_callbacks_begin_anew_with_another_estimator_that_has_a_past(tmp_path):
    """Not with the losses, and not with the weights, of the one before."""
    best = cb.RestoreBest(monitor="loss", mode="max")
    stop = cb.NumberSinceBest(2, monitor="loss", mode="max")
    _, first = fit(tmp_path, "first", best, stop)
    assert best.epoch == 1
    first.save(tmp_path / "saved.safetensors")
    torch.manual_seed(7)
    other = fs.Estimator.load(
        tmp_path / "saved.safetensors", loss=fs.seqloss(mse_loss), optimizer=adamw,
        callbacks=[best, stop],
    )  # fmt: skip
    begun = len(other.history_)
    assert begun > 0
    other.fit(X, Y, epochs=1)
    assert best.epoch == begun + 1
    assert len(other.history_) == begun + 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])  # noqa: S301
def test_a_copy_of_an_estimator_goes_on_with_copies_of_its_callbacks(copied):
    def estimator():
        torch.manual_seed(0)
        callbacks = [
            cb.NumberLimit(5),
            cb.NumberSinceBest(4, monitor="loss", mode="max"),  # losses fall: stops after epoch 5
            cb.RestoreBest(monitor="loss", mode="max"),
        ]
        return fs.Estimator(
            chain(), fs.seqloss(mse_loss), adamw, fs.Spec(9, 2, 5), seed=1, progress=False,
            callbacks=callbacks,
        )  # fmt: skip

    whole = estimator().fit(X, Y)
    part = copied(estimator().fit(X, Y, epochs=3))
    limit, _, best = part.callbacks
    part.fit(X, Y, epochs=6)
    assert len(part.history_) == len(whole.history_) == 5
    assert part.stop_reason_ == whole.stop_reason_
    assert best.epoch == 1
    other = estimator()
    other.callbacks = [copied(limit)]  # without its estimator
    assert len(other.fit(X, Y, epochs=3).history_) == 3
