"""Trackers log from rank 0; what Optuna decides there ends all ranks."""

from __future__ import annotations

import optuna
import pytest
import torch
from models import adamw, chain
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.callbacks import OptunaPruning, TensorBoard


def fitted(comm, *callbacks, epochs=4):
    x = torch.randn(10, 7, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    est = fs.Estimator(
        chain(), fs.seqloss(mse_loss), adamw, fs.Spec(epochs, 2, 5), comm=comm,
        callbacks=callbacks, progress=False, seed=0,
    )  # fmt: skip
    return est.fit(x, x[..., :1], validation=2)


def test_rank_0_logs(comm, tmp_path):
    own = tmp_path / str(comm.rank)  # tmp_path may be one for all
    fitted(comm, TensorBoard(own), epochs=1)
    assert own.exists() == (comm.rank == 0)


class Second(optuna.pruners.BasePruner):
    """Prunes after the second epoch."""

    def prune(self, study, trial):  # noqa: ARG002 (its name is given)
        return trial.last_step == 2


def test_pruning_ends_all_ranks(comm):
    study = optuna.create_study(pruner=Second()) if comm.rank == 0 else None
    for number in range(2):  # the ranks are in step after a pruned trial, too
        trial = None if study is None else study.ask()
        epochs = []
        with pytest.raises(optuna.TrialPruned, match="pruned after epoch 2, at "):
            fitted(comm, OptunaPruning(trial), lambda run: epochs.append(run.epoch))  # noqa: B023
        assert epochs == [1, 2]
        if study is not None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            assert list(study.trials[number].intermediate_values) == [1, 2]
    assert len(fitted(comm).history_) == 4
