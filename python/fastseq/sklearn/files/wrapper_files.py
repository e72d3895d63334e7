"""The scikit-learn estimators in files: `save` and `load`."""

from __future__ import annotations

import inspect
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..._util.tree import Tree
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
    restoring,
    write_content,
)
from ...checkpoint.limited_size import no_larger_than
from ...distributed import communicator
from ...distributed.replicas import Replicas
from ...estimator import Estimator, learner_of
from ..base import SequenceEstimator
from .saved_parts import plain, restored

__all__ = ["WrapperFiles"]

FORMAT = 1
"""The version of the contents; files of other versions are not read."""

_NOT_SAVED = ("callbacks", "comm", "device")

W = TypeVar("W", bound="WrapperFiles")


class WrapperFiles(SequenceEstimator):
    """A scikit-learn estimator that can be saved."""

    _KIND: ClassVar[str]  # what a file says it holds
    _FITTED: ClassVar[tuple[str, ...]]  # what `fit` sets, besides the estimator; some may be absent

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write this estimator to a file, for `load`. Rank 0 writes.

        The safetensors file holds hyperparameters, weights, the optimizer's state, scaling, history
        and all that `fit` has found out about the data. A loaded estimator predicts and trains
        (`partial_fit`, ``warm_start``) with the same bits. A forecaster's file also holds where all
        series are, with their times: it continues (`update`, `backtest`). Not in the file: the
        training data, `callbacks`, `device` and `comm`; and hyperparameters that are code or
        generators: a module that is not a name, a loss or an optimizer of your own.

        Parameters
        ----------
        path
            The file. It is written completely, or left as it was.

        Raises
        ------
        NotFittedError
            There is nothing to save yet.
        TypeError
            A file cannot hold the module's state, a class label, or an index's frequency.
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
        learner = learner_of(self.estimator_)
        with learner.replicas.together("save"):
            target = Path(path)
            learner.replicas.make_common(learner.model)
            learner.replicas.meet()
            if not learner.replicas.first:
                return
            check_path(target)
            saved, missing = _hyperparameters(self.get_params(deep=False))
            optimizer = self.estimator_.optimizer
            try:
                fitted = plain(self._fitted_parts())
            except TypeError as error:
                raise TypeError(f"save: {error}") from error
            write_content(target, {
                "kind": self._KIND, "format": FORMAT, "parameters": saved, "missing": missing,
                "learner": learner_content(learner, self._carried_state()),
                "optimizer": {"kind": type(optimizer).__name__, "state": optimizer.state_dict()},
                "schedule": callback_states(self._saved_callbacks()), "fitted": fitted,
            })  # fmt: skip

    @classmethod
    def load(
        cls: type[W],
        path: str | os.PathLike[str],
        module: nn.Module | Callable[..., nn.Module] | None = None,
        *,
        comm: object = None,
        **parameters: Any,
    ) -> W:
        """Make an estimator from a file that `save` wrote. All ranks read it. No code is run.

        Parameters
        ----------
        path
            The file.
        module
            The hyperparameter `module`, unless it was a name; it gets the weights.
        comm, **parameters
            The other hyperparameters that are not in the file: `device`, `callbacks`, and `loss`
            and `optimizer` unless they were names; these two are needed only to train.

        Returns
        -------
        SequenceClassifier, SequenceRegressor or SequenceForecaster
            The fitted estimator, of the class on which it is called.

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            There is no such file.
        CheckpointError
            It is damaged, not written by `save`, or of another module; the message names the first
            difference. Pickles are not opened.
        ValueError, TypeError
            The file has no module, and none is given; or a hyperparameter is given that the file
            has.

        Examples
        --------
        See `save`.
        """
        replicas = Replicas(communicator(comm))
        with replicas.together("load"):
            target = Path(path)
            given = {"comm": comm, **parameters}
            if module is not None:
                given["module"] = module
            for name in given:
                if name not in inspect.signature(cls).parameters:
                    raise TypeError(f"load: {cls.__name__} has no parameter {name}")
            content = read_content(target, cls._KIND, FORMAT, f"{cls.__name__}.save")
            with restoring(target):
                made = cls(**_given_or_saved(content, given, target))
                made._restore(content, target)
            return made

    def _check_fitted(self) -> None:
        check_is_fitted(self)

    def _fitted_parts(self) -> dict[str, Any]:
        """Return attributes that `fit` has set, by name, as they are saved."""
        return {name: getattr(self, name) for name in self._FITTED if hasattr(self, name)}

    @abstractmethod
    def _made_again(self) -> Estimator:
        """Return an estimator for the file's weights; the fitted parts are set already."""

    def _carried_state(self) -> Tree:
        """Return the model's state to save."""
        return None

    def _saved_callbacks(self) -> list[object]:
        """Return callbacks of the estimator whose states are saved."""
        return []

    def _restored_state(self, state: Tree) -> None:
        """Take the state that `_carried_state` returned."""

    def _restore(self, content: Mapping[str, Any], path: Path) -> None:
        """Set all that `fit` has set."""
        fitted = restored(content["fitted"])
        for name in self._FITTED:
            if name in fitted:
                setattr(self, name, fitted[name])
        with no_larger_than(content["learner"]["model"], path):
            est = self._made_again()
        learner = SavedLearner.of(content["learner"], est.model, path)
        for name in content["learner"]["frozen"]:
            est.model.get_parameter(name).requires_grad_(False)
        learner.restore(learner_of(est))
        est.spec = learner.spec
        if not isinstance(est.optimizer, NoOptimizer):
            check_optimizer(est.optimizer, content["optimizer"], f"load: {path}")
            load_optimizer(est.optimizer, content["optimizer"])
        self.estimator_, self.history_ = est, est.history_
        load_callbacks(self._saved_callbacks(), content["schedule"])
        self._restored_state(learner.state)
        self._fitted_with = self.get_params(deep=False)


def _hyperparameters(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the hyperparameters that a file can hold, and the names of the others."""
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
    content: Mapping[str, Any], given: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return all hyperparameters."""
    saved, missing = content["parameters"], content["missing"]
    for name in given:
        if name in saved:
            raise ValueError(
                f"load: {path} has {name}={saved[name]!r}; change it in the loaded estimator, by "
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
