"""Forecasters in files: `SequenceForecaster.save` and `SequenceForecaster.load`."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..._util.tree import Tree, tree_map
from ...callbacks import Schedule
from ...checkpoint.contents import (
    callback_states,
    check_optimizer,
    load_callbacks,
    load_optimizer,
)
from ...checkpoint.encoding import encode
from ...checkpoint.estimator_files import (
    NoOptimizer,
    SavedLearner,
    check_path,
    learner_content,
    no_loss,
    read_content,
    write_content,
)
from ...distributed import communicator
from ...distributed.replicas import Replicas
from ...errors import CheckpointError
from .conformal import ShiftTracker
from .fitting import ForecastTraining
from .rollout import Origin, Rollout
from .saved_parts import plain, restored

__all__ = ["ForecasterFiles"]

FORMAT = 1
"""The version of the contents; files of other versions are not read."""

_KIND = "forecaster"
_NOT_SAVED = ("callbacks", "comm", "device")
# What `fit` sets, besides the estimator.
_FITTED = (
    "n_features_in_", "season_", "n_iter_", "continued_", "repeats_", "_seed", "_form", "_sizes",
    "_settings", "_known", "_scaling", "_origin", "_last", "_baselines", "_times", "_like",
    "_correction", "_tracker", "_weight_column",
)  # fmt: skip

F = TypeVar("F", bound="ForecasterFiles")


class ForecasterFiles(ForecastTraining):
    """A forecaster that can be saved; see `SequenceForecaster`."""

    _origin: Origin
    _rollout: Rollout
    _tracker: ShiftTracker | None
    _data: object = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the forecaster to a file, for `load`. Rank 0 writes.

        The safetensors file holds parameters, weights, the optimizer's state, scaling, history, and
        the current position of all series with its times: a loaded forecaster predicts, continues
        (`update`, `backtest`) and trains (`partial_fit`) with the same bits. It does not hold the
        training data, `callbacks`, `device` and `comm`; nor parameters that are code or generators:
        a module that is not a name, a loss or an optimizer of your own.

        Parameters
        ----------
        path
            The file. It is written completely, or left as it was.

        Raises
        ------
        NotFittedError
            There is nothing to save yet.
        TypeError
            A file cannot hold the state of the module, or the frequency of an index.
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import fastseq as fs, numpy as np, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
        >>> f = fs.SequenceForecaster(12, epochs=2).fit(np.sin(np.arange(100) / 4))
        >>> f.save(path)
        >>> again = fs.SequenceForecaster.load(path)
        >>> np.array_equal(again.predict(), f.predict())
        True
        """
        self._check_fitted()
        learner = self.estimator_.learner
        with learner.replicas.together("save"):
            target = Path(path)
            learner.replicas.make_common(learner.model)
            if not learner.replicas.first:
                return
            check_path(target)
            saved, missing = _parameters(self.get_params(deep=False))
            fitted = {name: getattr(self, name) for name in _FITTED}
            fitted["_origin"] = dataclasses.replace(self._origin, state=None)
            if not isinstance(self._settings.loss, str):
                fitted["_settings"] = dataclasses.replace(self._settings, loss=None)
            optimizer = self.estimator_.optimizer
            try:
                fitted = plain(fitted)
            except TypeError as error:
                raise TypeError(f"save: {error}") from error
            write_content(target, {
                "kind": _KIND, "format": FORMAT, "parameters": saved, "missing": missing,
                "learner": learner_content(learner, self._origin.state),
                "optimizer": {"kind": type(optimizer).__name__, "state": optimizer.state_dict()},
                "schedule": callback_states(self._schedule()), "fitted": fitted,
            })  # fmt: skip

    @classmethod
    def load(
        cls: type[F],
        path: str | os.PathLike[str],
        module: nn.Module | Callable[..., nn.Module] | None = None,
        *,
        comm: object = None,
        **parameters: Any,
    ) -> F:
        """Make a forecaster from a file that `save` wrote. All ranks read it. No code is run.

        Parameters
        ----------
        path
            The file.
        module
            The forecaster's `module`, unless it was a name; it gets the weights.
        comm, **parameters
            The other parameters that are not in the file: `device`, `callbacks`, and `loss` and
            `optimizer` unless they were names; these two are needed only by `fit` and
            `partial_fit`.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CheckpointError
            It is damaged, not written by `save`, or of another module; the message names the first
            difference. Pickles are not opened.
        ValueError, TypeError
            The file has no module, and none is given; or a parameter is given that the file has.

        Examples
        --------
        See `save`.
        """
        replicas = Replicas(communicator(comm))
        with replicas.together("load"):
            target = Path(path)
            content = read_content(target, _KIND, FORMAT, f"{cls.__name__}.save")
            try:
                given = {"comm": comm, **parameters}
                if module is not None:
                    given["module"] = module
                made = cls(**_given_or_saved(cls, content, given, target))
                made._restore(content, target)
            except (KeyError, AttributeError) as error:
                raise CheckpointError(
                    f"load: {target} lacks a part of what this version of fastseq saves: load it "
                    "with the version that wrote it"
                ) from error
            return made

    def _restore(self, content: Mapping[str, Any], path: Path) -> None:
        """Set all that `fit` has set."""
        try:
            fitted = restored(content["fitted"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"load: {path} has parts that this version of fastseq cannot read ({error}): load "
                "it with the version that wrote it"
            ) from error
        for name in _FITTED:
            setattr(self, name, fitted[name])
        if self._settings.loss is None:
            self._settings = dataclasses.replace(self._settings, loss=self.loss)
        est = self._make_again(self._sizes, self._seed)
        learner = SavedLearner.of(content["learner"], est.model, path)
        learner.restore(est.learner)
        est.spec = learner.spec
        if not isinstance(est.optimizer, NoOptimizer):
            check_optimizer(est.optimizer, content["optimizer"], f"load: {path}")
            load_optimizer(est.optimizer, content["optimizer"])
        self.estimator_, self.history_ = est, est.history_
        load_callbacks(self._schedule(), content["schedule"])
        self._origin = _placed(self._origin, learner.state, est.device)
        if self._tracker is not None:
            behind = _placed(self._tracker.behind, self._tracker.behind.state, est.device)
            self._tracker = dataclasses.replace(self._tracker, behind=behind)
        self._rollout = self._make_rollout(self._seed)
        self._fitted_with = self.get_params(deep=False)

    def _schedule(self) -> list[object]:
        """Return the schedule that the forecaster has made itself, if there is one."""
        own = self.estimator_.callbacks[: len(self.estimator_.callbacks) - len(self.callbacks)]
        return [one for one in own if isinstance(one, Schedule)]


def _placed(origin: Origin, state: Tree, device: torch.device) -> Origin:
    """Return an origin with a state, on the model's device."""
    return dataclasses.replace(origin, state=tree_map(lambda a: a.to(device), state))


def _parameters(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters that a file can hold, and the names of the others."""
    saved, missing = {}, []
    for name, value in given.items():
        if name in _NOT_SAVED:
            continue
        try:
            encode(value)
            saved[name] = value
        except TypeError:
            missing.append(name)
    return saved, missing


def _given_or_saved(
    cls: type, content: Mapping[str, Any], given: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return all parameters."""
    saved, missing = content["parameters"], content["missing"]
    for name in given:
        if name not in inspect.signature(cls).parameters:
            raise TypeError(f"load: {cls.__name__} has no parameter {name}")
        if name in saved:
            raise ValueError(
                f"load: {path} has {name}={saved[name]!r}; change it in the loaded forecaster, by "
                "set_params"
            )
    if "module" in missing and "module" not in given:
        raise ValueError(
            f"load: {path} has the weights of a module of your own, but not how to build it: pass "
            "module=, as to the constructor"
        )
    found = {**saved, **given}
    if "loss" in missing:
        found.setdefault("loss", no_loss)
    if "optimizer" in missing:
        found.setdefault("optimizer", _no_optimizer)
    return found


def _no_optimizer(
    params: Iterable[torch.Tensor],
    lr: float,  # noqa: ARG001
    weight_decay: float,  # noqa: ARG001
) -> torch.optim.Optimizer:
    """Stand in for an optimizer that `load` was not given; `fit` raises."""
    return NoOptimizer(params)
