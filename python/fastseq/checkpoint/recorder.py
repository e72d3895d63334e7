"""Writes checkpoints of a run of `fit` while it goes on."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ..tree import Tree
from .contents import callback_states, model_state
from .exchange import gather_trees
from .files import tensors_checksum
from .generations import Generations
from .packing import pack
from .randomness import random_state
from .settings import Checkpoint
from .signals import Signals

if TYPE_CHECKING:
    from ..run import Run
    from ..training import LossMean, Trainer

__all__ = ["FORMAT", "Recorder"]

FORMAT = 1


class Recorder:
    """Saves a run when it is due; a context manager, while which signals ask for it too.

    `Run` calls it last after each step and epoch, when all other callbacks have had their turn.

    Parameters
    ----------
    settings
        Where and how often.
    generations
        The folder.
    run, trainer
        What is saved.
    first
        How many epochs were done when this call of `fit`, or the one it continues, began.
    sameness
        What must be the same for the saved position to mean anything, and what for equal bits.
    """

    def __init__(
        self,
        settings: Checkpoint,
        generations: Generations,
        run: Run,
        trainer: Trainer,
        *,
        first: int,
        sameness: dict[str, Any],
    ) -> None:
        self._settings = settings
        self._generations = generations
        self._run = run
        self._trainer = trainer
        self._first = first
        self._sameness = sameness
        self._signals = Signals(run.request)
        self._losses: LossMean | None = None  # of the epoch that is under way
        self._outside: dict[str, Any] = {}
        self._epoch_begin = 0.0
        self._pending: frozenset[str] = frozenset()
        self._last_step = run.step
        self._set_timer()

    def _set_timer(self) -> None:
        minutes = self._settings.every_minutes if self._run.first else None
        self._alarm = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def __enter__(self) -> Recorder:
        pack(self._tree(None))  # what cannot be saved is told now
        self._signals.__enter__()
        self._last_step = self._run.step
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._generations.finish()
        except OSError:
            if kind is None:
                raise
        finally:
            self._signals.__exit__()

    def begin_epoch(self) -> None:
        """Remember the random numbers outside of an epoch: it may have its own."""
        self._outside = random_state(self._run.estimator.device)

    def within_epoch(self, losses: LossMean, begin: float) -> None:
        """Say that an epoch's steps come now, where its losses go, and when it began."""
        self._losses, self._epoch_begin = losses, begin
        self._last_step = self._run.step

    def on_batch_end(self, run: Run) -> None:
        """Save if it is due after this step."""
        if time.monotonic() >= self._alarm:
            self._alarm = math.inf
            run.request("checkpoint")
        every = self._settings.every_steps
        due = every is not None and run.step // every > self._last_step // every
        if due or run.requests or run.stopped is not None:
            self._save(run.requests)
        else:
            self._generations.raise_if_failed()

    def on_epoch_end(self, run: Run) -> None:
        """Remember what was asked for: it is done when the ranks know whether to go on."""
        self._pending = run.requests
        self._losses = None

    def end_epoch(self) -> None:
        """Save if it is due after this epoch."""
        run, every = self._run, self._settings.every_epochs
        requests, run.requests = self._pending | run.requests, frozenset()
        due = every is not None and (run.epoch - self._first) % every == 0
        if due or requests or run.epoch == run.epochs or run.stopped is not None:
            self._save(requests)

    def _save(self, requests: frozenset[str]) -> None:
        """Save the run; end it if that was asked for."""
        run = self._run
        ranks = gather_trees(self._own(), run.estimator._replicas.comm)
        if run.first:
            self._generations.write(*pack(self._tree(ranks)))
        self._last_step = run.step
        self._set_timer()
        if "terminate" in requests:
            self._generations.finish()
            run.estimator._replicas.comm.barrier()  # a rank that ends may take the others along
            self._signals.terminate()

    def _tree(self, ranks: list[Any] | None) -> dict[str, Any]:
        """Return what all ranks have in common, and what each has."""
        run, est, losses = self._run, self._run.estimator, self._losses
        inside = losses is not None
        if losses is not None:
            losses.look()
        return {
            "format": FORMAT,
            "model": model_state(est.model),
            "optimizer": {
                "kind": type(est.optimizer).__name__,
                "state": self._trainer.optimizer_state(),
            },
            "scaler": est._precision.state_dict(),
            "callbacks": callback_states(est.callbacks),
            "history": list(est.history_),
            "scaling": None if est.scaling_ is None else est.scaling_.state(),
            "seed": est._drawn_seed,
            "first": self._first,
            "epochs": run.epochs,
            "step": run.step,
            "index": run.index if inside else 0,
            "inside": inside,
            "sums": None if losses is None else (*losses.sums, losses.last),
            "stopped": run.stopped,
            "seconds": run.seconds,
            "epoch_seconds": time.perf_counter() - self._epoch_begin if inside else 0.0,
            "sameness": self._sameness,
            "ranks": ranks,
        }

    def _own(self) -> dict[str, Any]:
        """Return what this rank alone has."""
        est = self._run.estimator
        own: dict[str, Any] = {
            "random": random_state(est.device),
            "buffers": None,
            "since_common": est._replicas.since_common,
        }
        if not est._replicas.alone:  # each may have statistics of its own data
            buffers = dict(est.model.named_buffers())
            checksum = tensors_checksum(buffers)
            if est._replicas.same_number(checksum) != checksum:
                own["buffers"] = buffers
        if self._losses is None:
            return own
        states = {"state": self._trainer.stateful.state, "ends": self._trainer.ends}
        wish = self._run.wish_to_stop
        return {**own, "outside": self._outside, "wish": wish, "plain": _plain(states), **states}


def _plain(tree: Tree) -> bool:
    """Whether a tree's containers are those that come back from a file."""
    if isinstance(tree, dict):
        return type(tree) is dict and all(map(_plain, tree.values()))
    if isinstance(tree, tuple | list):
        return type(tree) in (tuple, list) and all(map(_plain, tree))
    return True
