"""What `fit` calls on the way, and what it tells: `Callback` and `Run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from .._util.tree import Tree
from ..data.fingerprint import fingerprint
from ..distributed.replicas import Replicas
from .position import Position

if TYPE_CHECKING:
    from torch import nn, optim

    from ..data.sequences import Sequences
    from ..data.validation import Validation
    from .history import History
    from .learner import Learner

__all__ = ["Callback", "Run", "check_callbacks"]

HOOKS = ("on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")


class Callback:
    """Base of what is called while `Estimator.fit` runs; methods that are not needed are left out.

    On several ranks all of them are called on every rank. The losses they see are those of all
    ranks, so what they decide by them is the same everywhere; files and logs come from rank 0
    (``run.first``).

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

    # What it was last used with: the estimator's history, which in copies of both is that of the
    # copy, and the data. None: a state that was loaded, or nothing.
    _used: tuple[History, int] | None = None

    def is_new_to(self, run: Run) -> bool:
        """Whether what this has seen means nothing to `run`; call it in ``on_fit_begin``, once.

        It was of another estimator, or of other data: losses on them cannot be compared.
        """
        before, self._used = self._used, (run.history, run.data_key)
        if run.step == 0:
            return True
        if before is None:
            return run.has_other_data
        return before[0] is not run.history or before[1] != run.data_key

    def on_fit_begin(self, run: Run) -> None:
        """Before the first epoch of a call of `fit`; data and optimizer are known."""

    def on_epoch_begin(self, run: Run) -> None:
        """Before an epoch's first step."""

    def on_batch_end(self, run: Run) -> None:
        """After each step of the optimizer."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch and its validation; ``run.row`` is complete, and may be added to."""

    def on_fit_end(self, run: Run) -> None:
        """At the end of a call of `fit`, also if it failed (``run.error``); last ones first."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on: numbers, strings, tensors, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class Run:
    """One call of `Estimator.fit`.

    Attributes
    ----------
    estimator, data, validation
        What is fitted, on what.
    learner
        The estimator's model and all that it takes to train it.
    position
        Where it has got to.
    steps
        How many chunks an epoch has.
    row
        The epoch's line in the history, complete in ``on_epoch_end``.
    error
        What `fit` failed with, in ``on_fit_end``.
    requests
        What `request` asked for, on any rank: for the callbacks of this step, or epoch.
    has_other_data
        Whether the last call of `fit` is known to have trained on other data than this one.
    """

    def __init__(
        self,
        learner: Learner,
        data: Sequences,
        validation: Validation | None,
        estimator: Any,
        callbacks: list[Any],
        position: Position,
        *,
        steps: int,
    ) -> None:
        self.learner = learner
        self.estimator = estimator  # an Estimator, which this module must not know
        self.data = data
        self.validation = validation
        self.position = position
        self.steps = steps
        self.row: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.requests: frozenset[str] = frozenset()
        self._wishes: set[str] = set()
        self._reason = ""
        self._replicas: Replicas = learner.replicas
        self._begun: list[Any] = []  # callbacks whose on_fit_begin was called
        self._callbacks = list(callbacks)
        self._chunks_per_step = learner.spec.accumulate
        self._every_step = _hooks(self._callbacks, "on_batch_end")
        self._data_key: int | None = None
        self.has_other_data = False

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 1, over all calls of `fit`."""
        return self.position.epoch

    @property
    def epochs(self) -> int:
        """The number of this call's last epoch."""
        return self.position.epochs

    @property
    def index(self) -> int:
        """Chunks of the epoch that are done."""
        return self.position.chunk

    @property
    def step(self) -> int:
        """Chunks that are done over all calls of `fit`."""
        return self.position.step

    @property
    def loss(self) -> float:
        """Of the last chunk, on all ranks."""
        return self.position.loss

    @property
    def stopped(self) -> str | None:
        """Why `fit` ends before its last epoch; None: it does not."""
        return self.position.stopped

    @property
    def ends(self) -> dict[int, Tree] | None:
        """The states in which each block's training part has ended, if validation needs them."""
        return self.position.ends

    @property
    def data_key(self) -> int:
        """A number that other data for training and validation hardly have.

        All ranks must ask for it at the same place.
        """
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
        """The epochs that are done, this one's line last in ``on_epoch_end``."""
        return self.learner.history

    @property
    def rank(self) -> int:
        """Number of this process among those that work together."""
        return self._replicas.comm.rank

    @property
    def first(self) -> bool:
        """Whether this is rank 0, from which files and logs come."""
        return self._replicas.first

    @property
    def seconds(self) -> float:
        """How long `fit` has been running."""
        return time.monotonic() - self.position.start

    @property
    def wish_to_stop(self) -> str | None:
        """Why this rank wants `fit` to end, if that is not agreed upon yet."""
        return self._reason if "stop" in self._wishes else None

    def same(self, value: float) -> float:
        """Return rank 0's number on all ranks, which must all ask, at the end of an epoch."""
        if self._replicas.alone:
            return value
        number = torch.tensor(value, dtype=torch.float64)
        return float(self._replicas.comm.broadcast_(number))

    def stop(self, reason: str) -> None:
        """End `fit`: after this epoch's callbacks, or, from ``on_batch_end``, after the next step.

        One rank's wish is enough, and ends all of them at the same step. An epoch that ends in the
        middle is not in the history.
        """
        self._reason = self._reason or reason
        self._wishes.add("stop")

    def request(self, name: str) -> None:
        """Ask for something that all ranks must do at the same step: it comes in `requests`."""
        if name not in _REQUESTS:
            raise ValueError(f"a request must be one of {_REQUESTS}, got {name!r}")
        self._wishes.add(name)

    def add(self, callback: Any) -> None:
        """Call one more, after the others, from now on."""
        self._callbacks.append(callback)
        self._every_step = _hooks(self._callbacks, "on_batch_end")

    def asks(self) -> bool:
        """Whether this rank has something that all must agree upon."""
        return bool(self._wishes)

    def agree(self) -> None:
        """Make the ranks' wishes those of all: all ranks must call it."""
        wishes, self._wishes = self._wishes, set()
        reason, self._reason = self._reason, ""
        if not self._replicas.alone:
            comm = self._replicas.comm
            mine = torch.zeros(comm.size, len(_REQUESTS), dtype=torch.float64)
            mine[comm.rank] = torch.tensor([float(name in wishes) for name in _REQUESTS])
            ranks = comm.allreduce_(mine, "sum")
            wishes = {
                name for name, any_ in zip(_REQUESTS, ranks.any(0).tolist(), strict=True) if any_
            }
            if "stop" in wishes:
                root = int(ranks[:, 0].nonzero()[0])
                reason = comm.broadcast_bytes(reason.encode(), root).decode()
        if "stop" in wishes and self.position.stopped is None:
            self.position.stopped = reason
        self.requests |= wishes - {"stop"}

    def call(self, hook: str) -> None:
        """Call one of the protocol's methods of all callbacks that have it."""
        if hook == "on_fit_begin":
            for callback in self._callbacks:
                self._begun.append(callback)
                for function in _hooks([callback], hook):
                    function(self)
            return
        if hook == "on_fit_end":
            begun, self._begun = self._begun, []
            with ExitStack() as ends:  # it calls all, the last one first, even if one fails
                for function in _hooks(begun, hook):
                    ends.callback(function, self)
            return
        for function in _hooks(self._callbacks, hook):
            function(self)

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.position.begin_epoch()
        self.row = {}
        self.call("on_epoch_begin")

    def after_step(self, attention: bool) -> bool:
        """Count a step, call the callbacks that want to know, and return whether to stop now."""
        position = self.position
        done = min(self._chunks_per_step, self.steps - position.chunk)
        position.chunk += done
        position.step += done
        if attention:
            self.agree()
        if self._every_step:
            for function in self._every_step:
                function(self)
            self.requests = frozenset()
        return position.stopped is not None

    def end_epoch(self) -> None:
        """Call the callbacks about an epoch that is complete."""
        if not self._callbacks:
            return
        self.agree()
        self.call("on_epoch_end")
        self.requests = frozenset()
        self.agree()


_REQUESTS = ("stop", "checkpoint", "terminate")


def _hooks(callbacks: Iterable[Any], name: str) -> list[Callable[[Run], None]]:
    """Return the methods of that name which do something."""
    found = []
    for callback in callbacks:
        if not _is_callback(callback):
            if name == "on_epoch_end":
                found.append(callback)
        elif getattr(type(callback), name, None) is not getattr(Callback, name):
            hook = getattr(callback, name, None)
            if hook is not None:
                found.append(hook)
    return found


def _is_callback(callback: Any) -> bool:
    return any(hasattr(callback, name) for name in HOOKS)


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return callbacks as a list.

    Raises
    ------
    TypeError
        One has none of the protocol's methods, and is no function either.
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
