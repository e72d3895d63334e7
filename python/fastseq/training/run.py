"""`Callback`, whose methods `fit` calls, and `Run`, their argument."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._util.tree import Tree
from ..data.fingerprint import fingerprint
from ..distributed.replicas import Replicas
from .position import Position

if TYPE_CHECKING:
    from torch import nn, optim

    from ..data.sequences import Sequences
    from ..data.validation_split import Validation
    from .history import History
    from .learner import Learner

__all__ = ["Callback", "Run", "check_callbacks"]

HOOKS = ("on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")


def _arguments(callback: Callback) -> list[str]:
    """Return the arguments that a callback was made with; "…" for those that it does not keep."""
    told: list[str] = []
    for name, parameter in inspect.signature(type(callback)).parameters.items():
        kept = getattr(callback, name, getattr(callback, f"_{name}", parameter.default))
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            told += map(repr, kept) if isinstance(kept, list | tuple) else ["…"]
        elif kept is inspect.Parameter.empty or not isinstance(kept, _PLAIN):
            told += ["…"] if parameter.default is inspect.Parameter.empty else []
        elif kept != parameter.default:
            keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            told.append(f"{name}={kept!r}" if keyword else repr(kept))
    return told


_PLAIN = (bool, int, float, str, tuple, list, Path)


class Callback:
    """Base class of callbacks, called while `Estimator.fit` runs; override only what you need.

    On several ranks each method is called on every rank. Callbacks see the loss over all ranks, so
    they decide the same everywhere; only rank 0 (``run.first``) should write files and logs.

    Notes
    -----
    The methods get `run`, this call of `fit`. It has

    - ``model``, ``optimizer``, ``history``, and ``estimator``, which is trained;
    - ``epoch``, counted from 1 over all calls of `fit`, and ``epochs``, the last of this call;
    - ``updates`` of the weights over all calls, ``updates_per_epoch``, and ``loss``, the mean loss
      of the last update's samples on all ranks (on a GPU of an update at most 16 before);
    - ``row``, a dict: the epoch's row of the history, complete in `on_epoch_end`;
    - ``seconds`` since `fit` began, ``rank``, ``first``, and ``error``, which made `fit` fail;
    - ``stop(reason)``, which ends `fit`, and ``same(value)``, which is rank 0's number on all
      ranks.

    Examples
    --------
    >>> class Tell(Callback):
    ...     def on_epoch_end(self, run):
    ...         print(f"epoch {run.epoch} of {run.epochs}")
    >>> import fastseq as fs, torch
    >>> spec = dict(epochs=2, batchsize=4, seqsize=5)
    >>> model, loss = torch.nn.GRU(1, 1), fs.seqloss(torch.nn.functional.mse_loss)
    >>> est = fs.Estimator(model, loss, torch.optim.SGD, spec, callbacks=[Tell()], progress=False)
    >>> _ = est.fit(torch.zeros(10, 4, 1), torch.zeros(10, 4, 1))
    epoch 1 of 2
    epoch 2 of 2
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(_arguments(self))})"

    # The estimator's history (copied along when estimator and callback are copied) and the key of
    # the data in the last run. None: a state was loaded, or there was no run.
    _used: tuple[History, int] | None = None

    def is_new_to(self, run: Run) -> bool:
        """Whether this must start over for `run`; call it once, in `on_fit_begin`.

        Parameters
        ----------
        run
            This call of `fit`.

        Returns
        -------
        bool
            True if the callback last saw another estimator, or other data: their losses are not
            comparable.
        """
        before, self._used = self._used, (run.history, run.data_key)
        if run.updates == 0:
            return True
        if before is None:
            return run.has_other_data
        return before[0] is not run.history or before[1] != run.data_key

    def on_fit_begin(self, run: Run) -> None:
        """Run before the first epoch of a call of `fit`; data and optimizer are known.

        Parameters
        ----------
        run
            This call of `fit`, see `Callback`.
        """

    def on_epoch_begin(self, run: Run) -> None:
        """Run before an epoch's first update.

        Parameters
        ----------
        run
            This call of `fit`, see `Callback`.
        """

    def on_batch_end(self, run: Run) -> None:
        """Run after each update.

        Parameters
        ----------
        run
            This call of `fit`, see `Callback`.
        """

    def on_epoch_end(self, run: Run) -> None:
        """Run after an epoch and its validation; callbacks may add to the complete ``run.row``.

        Parameters
        ----------
        run
            This call of `fit`, see `Callback`.
        """

    def on_fit_end(self, run: Run) -> None:
        """Run when `fit` ends, even if it failed (``run.error``); the last callback comes first.

        Parameters
        ----------
        run
            This call of `fit`, see `Callback`.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the callback to continue.

        Returns
        -------
        dict
            Numbers, strings, tensors, lists and dicts of them, by names; empty: there is nothing.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, from a checkpoint.

        Parameters
        ----------
        state
            What `state_dict` returned.
        """


class Run:
    """One call of `Estimator.fit`.

    Attributes
    ----------
    estimator, data, validation
        The estimator, and its data.
    learner
        The estimator's model, with all that is needed to train it.
    position
        The progress so far.
    chunks, updates_per_epoch
        Chunks and updates in an epoch. An update is one step of the optimizer, for each
        ``spec.accumulate`` chunks and for what is left of them at an epoch's end. It counts even if
        the optimizer is not called, because no sample has weight or fp16 overflows.
    row
        The epoch's row in the history, complete in ``on_epoch_end``.
    error
        The error with which `fit` failed, in ``on_fit_end``.
    requests
        What `request` asked for, on any rank: for the callbacks of this update, or epoch.
    has_other_data
        Whether the last call of `fit` is known to have trained on other data than this one.
    """

    def __init__(
        self,
        learner: Learner,
        data: Sequences,
        validation: Validation | None,
        estimator: Any,
        callbacks: list[object],
        position: Position,
        *,
        chunks: int,
    ) -> None:
        self.learner = learner
        self.estimator = estimator  # an Estimator, which this module must not import
        self.data = data
        self.validation = validation
        self.position = position
        self.chunks = chunks
        self._accumulate = learner.spec.accumulate
        self.updates_per_epoch: int = -(-chunks // self._accumulate)
        self.row: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.requests: frozenset[str] = frozenset()
        self._requested: set[str] = set()
        self._reason = ""
        self._replicas: Replicas = learner.replicas
        self._begun: list[object] = []  # callbacks whose on_fit_begin was called
        self._callbacks = list(callbacks)
        self._every_update = _hooks(self._callbacks, "on_batch_end")
        self._data_key: int | None = None
        self.has_other_data: bool = False

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 1, over all calls of `fit`."""
        return self.position.epoch

    @property
    def epochs(self) -> int:
        """The number of this call's last epoch."""
        return self.position.epochs

    @property
    def chunk(self) -> int:
        """Chunks done in the epoch."""
        return self.position.chunk

    @property
    def updates(self) -> int:
        """Updates done over all calls of `fit`."""
        return self.position.updates

    @property
    def loss(self) -> float:
        """The mean loss of the last update's chunks, on all ranks.

        On a GPU, of an update at most 16 before: reading each would wait for the GPU.
        """
        return self.position.loss

    @property
    def stopped(self) -> str | None:
        """Why `fit` ends before its last epoch; None: it does not."""
        return self.position.stopped

    @property
    def ends(self) -> dict[int, Tree] | None:
        """Each block's state at the end of its training part, if validation needs it."""
        return self.position.ends

    @property
    def data_key(self) -> int:
        """A fingerprint of the data for training and validation. Collective."""
        if self._data_key is None:
            parts = [self.data] if self.validation is None else [self.data, self.validation.data]
            keys = torch.tensor([fingerprint(part) for part in parts], dtype=torch.float64)
            if not self._replicas.alone:
                keys = self._replicas.comm.allreduce_(keys, "sum")
            key = self._data_key = hash(tuple(keys.tolist()))
            before, self.learner.data_key = self.learner.data_key, key
            self.has_other_data = before not in (None, key)
        return self._data_key

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.learner.model

    @property
    def optimizer(self) -> optim.Optimizer:
        """The optimizer."""
        return self.learner.optimizer

    @property
    def history(self) -> History:
        """The epochs done; in ``on_epoch_end`` this epoch's row is the last."""
        return self.learner.history

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._replicas.comm.rank

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self._replicas.first

    @property
    def seconds(self) -> float:
        """How long `fit` has been running."""
        return time.monotonic() - self.position.start

    @property
    def stop_request(self) -> str | None:
        """Why this rank wants `fit` to end, if not agreed on yet."""
        return self._reason if "stop" in self._requested else None

    def same(self, value: float) -> float:
        """Return rank 0's number on all ranks, at the end of an epoch. Collective."""
        if self._replicas.alone:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        return float(self._replicas.comm.broadcast_(number))

    def stop(self, reason: str) -> None:
        """End `fit` after this epoch's callbacks, or, from ``on_batch_end``, after the next update.

        If one rank calls it, all end at the same update. An unfinished epoch is not in the history.
        """
        self._reason = self._reason or reason
        self._requested.add("stop")

    def request(self, name: str) -> None:
        """Ask for something that all ranks must do after the same update: see `requests`."""
        if name not in _REQUESTS:
            raise ValueError(f"a request must be one of {_REQUESTS}, got {name!r}")
        self._requested.add(name)

    @property
    def callbacks(self) -> tuple[object, ...]:
        """The callbacks of this call, in their order."""
        return tuple(self._callbacks)

    def add(self, callback: object) -> None:
        """Add a callback, after the others."""
        self._callbacks.append(callback)
        self._every_update = _hooks(self._callbacks, "on_batch_end")

    def has_requests(self) -> bool:
        """Whether this rank has something that all must agree on."""
        return bool(self._requested)

    def agree(self) -> None:
        """Share the ranks' requests. Collective."""
        requested, self._requested = self._requested, set()
        reason, self._reason = self._reason, ""
        if not self._replicas.alone:
            comm = self._replicas.comm
            mine = torch.zeros(comm.size, len(_REQUESTS), dtype=torch.float64)
            mine[comm.rank] = torch.tensor([float(name in requested) for name in _REQUESTS])
            ranks = comm.allreduce_(mine, "sum")
            requested = {
                name for name, any_ in zip(_REQUESTS, ranks.any(0).tolist(), strict=True) if any_
            }
            if "stop" in requested:
                root = int(ranks[:, 0].nonzero()[0])
                reason = comm.broadcast_bytes(reason.encode(), root).decode()
        if "stop" in requested and self.position.stopped is None:
            self.position.stopped = reason
        self.requests |= requested - {"stop"}

    def call(self, hook: str) -> None:
        """Call method `hook` of all callbacks that have it."""
        if hook == "on_fit_begin":
            for callback in self._callbacks:
                self._begun.append(callback)
                for function in _hooks([callback], hook):
                    function(self)
            return
        if hook == "on_fit_end":
            begun, self._begun = self._begun, []
            with ExitStack() as ends:  # calls all, the last one first, even if one fails
                for function in _hooks(begun, hook):
                    ends.callback(function, self)
            return
        for function in _hooks(self._callbacks, hook):
            function(self)

    def begin_epoch(self) -> None:
        """Start the next epoch."""
        self.position.begin_epoch()
        self.row = {}
        self.call("on_epoch_begin")

    @property
    def sees_updates(self) -> bool:
        """Whether a callback is called after each update."""
        return bool(self._every_update)

    def after_update(self, attention: bool, updates: int = 1) -> bool:
        """Count updates, call ``on_batch_end``, and return whether to stop now."""
        position = self.position
        position.chunk = min(position.chunk + updates * self._accumulate, self.chunks)
        position.updates += updates
        if attention:
            self.agree()
        if self._every_update:
            for function in self._every_update:
                function(self)
            self.requests = frozenset()
        return position.stopped is not None

    def end_epoch(self) -> None:
        """Call ``on_epoch_end``, once an epoch is complete."""
        if not self._callbacks:
            return
        self.agree()
        self.call("on_epoch_end")
        self.requests = frozenset()
        self.agree()


_REQUESTS = ("stop", "checkpoint", "terminate")


def _hooks(callbacks: Iterable[object], name: str) -> list[Callable[[Run], None]]:
    """Return the callbacks' methods of that name, less those that do nothing."""
    found: list[Callable[[Run], None]] = []
    for callback in callbacks:
        if not _is_callback(callback):
            if name == "on_epoch_end" and callable(callback):
                found.append(callback)
        elif getattr(type(callback), name, None) is not getattr(Callback, name):
            hook = getattr(callback, name, None)
            if hook is not None:
                found.append(hook)
    return found


def _is_callback(callback: object) -> bool:
    return any(hasattr(callback, name) for name in HOOKS)


def check_callbacks(callbacks: object) -> list[Any]:
    """Return callbacks as a list.

    Raises
    ------
    TypeError
        One has none of the protocol's methods and is not a function.
    """
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}: put it in [ ]")
    found = list(callbacks)
    for callback in found:
        if isinstance(callback, type) or not (_is_callback(callback) or callable(callback)):
            raise TypeError(
                "callbacks must be functions or objects with methods such as on_epoch_end, got "
                f"{callback!r}"
            )
    return found
