"""What a forecaster's file holds besides what those of all wrappers do."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..._util.tree import Tree, tree_map
from ...callbacks import Schedule
from ...estimator import Estimator
from ..files.wrapper_files import WrapperFiles
from .conformal import ShiftTracker
from .fitting import ForecastTraining
from .rollout import Origin, Rollout

__all__ = ["ForecasterFiles"]


class ForecasterFiles(ForecastTraining, WrapperFiles):
    """A forecaster that can be saved; see `SequenceForecaster`."""

    _KIND = "forecaster"
    _FITTED = (
        "n_features_in_", "season_", "n_iter_", "continued_", "repeats_", "_seed", "_form",
        "_sizes", "_settings", "_known", "_scaling", "_origin", "_last", "_baselines", "_times",
        "_like", "_correction", "_tracker", "_weight_column",
    )  # fmt: skip

    _origin: Origin
    _rollout: Rollout
    _tracker: ShiftTracker | None
    _data: object = None

    def _fitted_parts(self) -> dict[str, Any]:
        fitted = super()._fitted_parts()
        fitted["_origin"] = dataclasses.replace(self._origin, state=None)
        if not isinstance(self._settings.loss, str):
            fitted["_settings"] = dataclasses.replace(self._settings, loss=None)
        return fitted

    def _carried_state(self) -> Tree:
        return self._origin.state

    def _made_again(self) -> Estimator:
        if self._settings.loss is None:
            self._settings = dataclasses.replace(self._settings, loss=self.loss)
        return self._make_again(self._sizes, self._seed)

    def _restored_state(self, state: Tree) -> None:
        est = self.estimator_
        self._origin = _placed(self._origin, state, est.device)
        if self._tracker is not None:
            behind = _placed(self._tracker.behind, self._tracker.behind.state, est.device)
            self._tracker = dataclasses.replace(self._tracker, behind=behind)
        self._rollout = self._make_rollout(self._seed)

    def _saved_callbacks(self) -> list[object]:
        """Return the schedule that the forecaster has made itself, if there is one."""
        own = self.estimator_.callbacks[: len(self.estimator_.callbacks) - len(self.callbacks)]
        return [one for one in own if isinstance(one, Schedule)]


def _placed(origin: Origin, state: Tree, device: torch.device) -> Origin:
    """Return an origin with a state, on the model's device."""
    return dataclasses.replace(origin, state=tree_map(lambda a: a.to(device), state))
