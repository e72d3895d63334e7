"""Switch a model between training and evaluation mode, safely across threads."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import BusyError

__all__ = ["in_mode", "models_in_use"]


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode; afterwards restore every module's mode.

    A model has one mode for all threads. Evaluation is shared: the first thread changes the mode,
    the last one restores it. Training waits until other threads' evaluations have ended; meanwhile
    only its own thread may evaluate.

    Raises
    ------
    BusyError
        Another thread trains the model.

    Examples
    --------
    >>> model = nn.Dropout()
    >>> with in_mode(model, training=False):
    ...     model.training
    False
    >>> model.training
    True
    """
    thread = threading.get_ident()
    with _changed:
        users = models_in_use.setdefault(id(model), _Users(model))
        before = users.train(thread) if training else users.evaluate(thread)
    try:
        yield
    finally:
        with _changed:
            users.leave(thread, before, training=training)
            if users.idle:
                models_in_use.pop(id(model), None)
            _changed.notify_all()


_Modes = list[tuple[nn.Module, bool]]


class _Users:
    """Threads that use a model, and in which mode. Called with `_changed` held."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._evaluations: Counter[int] = Counter()  # by thread
        self._before: _Modes = []  # the modes before the first of these
        self._trainer: int | None = None
        self._depth = 0

    @property
    def idle(self) -> bool:
        return not self._depth and not self._evaluations

    def train(self, thread: int) -> _Modes:
        """Start training; return the modes to restore."""
        self._check(thread)
        self._trainer = thread  # from here on no other thread can start
        self._depth += 1
        try:
            while self._evaluations.keys() - {thread}:
                _changed.wait()
            return self._set(training=True)
        except BaseException:  # Ctrl-C, or the model raised
            self._stop_training()
            raise

    def evaluate(self, thread: int) -> _Modes | None:
        """Start evaluating; return the modes to restore, or None if another call does it."""
        if self._trainer != thread and thread in self._evaluations:  # training waits for it for it
            self._evaluations[thread] += 1
            return None
        self._check(thread)
        if self._trainer is not None:
            return self._set(training=False)
        if not self._evaluations:
            self._before = self._set(training=False)
        self._evaluations[thread] += 1
        return None

    def leave(self, thread: int, before: _Modes | None, *, training: bool) -> None:
        if training:
            self._stop_training()
        if before is not None:
            _restore(before)
            return
        self._evaluations[thread] -= 1
        if not self._evaluations[thread]:
            del self._evaluations[thread]
        if not self._evaluations:
            _restore(self._before)

    def _stop_training(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._trainer = None

    def keep_only(self, thread: int) -> None:
        """Forget other threads: a forked child does not have them."""
        if self._trainer not in (None, thread):
            self._trainer, self._depth = None, 0
        others = self._evaluations.keys() - {thread}
        for other in others:
            del self._evaluations[other]
        if others and not self._evaluations:
            _restore(self._before)

    def _check(self, thread: int) -> None:
        if self._trainer not in (None, thread):
            raise BusyError(
                "another thread trains this model: wait for its fit to end, predict in a callback "
                "of that fit, or use a copy of the estimator made before it"
            )

    def _set(self, *, training: bool) -> _Modes:
        modes = [(module, module.training) for module in self._model.modules()]
        if all(mode is training for _, mode in modes):
            return []
        try:
            self._model.train(training)
        except BaseException:
            _restore(modes)
            raise
        return modes


def _restore(modes: _Modes) -> None:
    for module, mode in modes:
        module.training = mode


_changed = threading.Condition()
models_in_use: dict[int, _Users] = {}  # by id of a model, which lives while in use


def _forget_other_threads() -> None:
    global _changed
    _changed = threading.Condition()
    for key, users in list(models_in_use.items()):
        users.keep_only(threading.get_ident())
        if users.idle:
            del models_in_use[key]


os.register_at_fork(after_in_child=_forget_other_threads)
