"""A call of `fit` and its checkpoints: those it writes, and the one that it goes on from."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

import torch

from .. import _ops
from .generations import Generations
from .recorder import Recorder
from .resuming import Saved, find
from .settings import Checkpoint

if TYPE_CHECKING:
    from ..data.sequences import Sequences
    from ..estimator import Estimator
    from ..run import Run
    from ..training import LossMean, Trainer

__all__ = ["Saves"]


class Saves:
    """Does nothing where neither is wanted; a context manager around the epochs.

    Parameters
    ----------
    est
        The estimator.
    checkpoint, resume
        As in `Estimator.fit`.
    """

    def __init__(self, est: Estimator, checkpoint: Any, resume: Any) -> None:
        self._est = est
        self._comm = est._replicas.comm
        self._settings = None if checkpoint is None else Checkpoint.of(checkpoint)
        self._generations: Generations | None = None
        if self._settings is not None:
            self._generations = Generations(self._settings.folder, self._settings.keep)
        self._resume = resume
        self._saved: Saved | None = None
        self._within: Saved | None = None  # an epoch that was begun
        self._recorder: Recorder | None = None
        self._sameness: dict[str, Any] = {}
        self.first = len(est.history_)

    def __str__(self) -> str:
        """Tell what must be the same on all ranks: the folder is rank 0's."""
        settings = self._settings and dataclasses.replace(self._settings, folder="…")
        resume = self._resume if self._resume in (None, "auto") else "a path"
        return f"checkpoint {settings}, resume {resume}"

    def open(self, data: Sequences) -> None:
        """Look for what to go on from, and give the estimator what it holds. Collective.

        Raises
        ------
        OSError
            The folder cannot be written.
        CheckpointError
            There is no such checkpoint, or it is of another model or optimizer.
        """
        if self._settings is None and self._resume is None:
            return
        est = self._est
        if self._generations is not None and est._replicas.first:
            self._generations.check()
        self._sameness = _sameness(est, data)
        saved = find(self._resume, self._generations, self._comm)
        if saved is not None and not (self._resume == "auto" and saved.is_past_of(est)):
            saved.check(est, self._sameness)
            saved.restore(est)
            self._saved, self.first = saved, saved.first
        elif est._replicas.first and self._generations is not None and not est.history_:
            self._warn_of_others(self._generations)

    def _warn_of_others(self, generations: Generations) -> None:
        if self._resume is None and generations.paths():
            warnings.warn(
                f"the folder {generations.folder} has checkpoints of another run, in whose place "
                'come those of this one; to go on from them, pass resume="auto"',
                stacklevel=6,
            )

    @property
    def index(self) -> int:
        """How many chunks of the epoch that comes next are done."""
        return 0 if self._saved is None else self._saved.index

    def attach(self, run: Run, trainer: Trainer) -> Saves:
        """Say which run this is about."""
        self._run = run
        if self._settings is not None:
            assert self._generations is not None
            self._recorder = Recorder(
                self._settings, self._generations, run, trainer,
                first=self.first, sameness=self._sameness,
            )  # fmt: skip
            run.add(self._recorder)
        return self

    def __enter__(self) -> Saves:
        if self._saved is not None:
            self._within = self._saved.begin(self._run)
        self._saved = None
        if self._recorder is not None:
            self._recorder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._recorder is not None:
            self._recorder.__exit__(*error)

    def begin_epoch(self) -> None:
        """Go on with the epoch, if it was interrupted, once callbacks have begun it."""
        if self._within is not None:
            self._within.begin_epoch(self._run)
        if self._recorder is not None:
            self._recorder.begin_epoch()

    def within_epoch(self, trainer: Trainer, losses: LossMean, begin: float) -> float:
        """Do so where random numbers are its own; return when it would have begun by this clock."""
        if self._within is not None:
            begin -= self._within.within(self._run, trainer, losses)
        self._within = None
        if self._recorder is not None:
            self._recorder.within_epoch(losses, begin)
        return begin

    def end_epoch(self) -> None:
        """Save if it is due, when all callbacks have had their turn."""
        if self._recorder is not None:
            self._recorder.end_epoch()


def _sameness(est: Estimator, data: Sequences) -> dict[str, Any]:
    """Return what a position within an epoch depends on, and what the last bits depend on."""
    spec, comm = est.spec, est._replicas.comm
    size = [data.steps, data.count]
    if spec.shard == "given":
        ranks = comm.allreduce_(torch.tensor(size, dtype=torch.float64), "sum")
        size = [int(number) for number in ranks]
    names = ("batchsize", "seqsize", "accumulate", "shuffle", "fold", "shard")
    return {
        "plan": {
            "ranks": comm.size,
            "steps of time": size[0],
            "sequences": size[1],
            **{f"spec.{name}": getattr(spec, name) for name in names},
            "seed": est.seed,
        },
        "bits": {
            "device": est.device.type,
            "threads": torch.get_num_threads(),
            "transport": comm.transport if comm.size > 1 else "single",
            "kernels": _ops.active_isa,
            "torch": str(torch.__version__),
            "fastseq": importlib.metadata.version("fastseq-torch"),
            "amp": est.amp,
            "compile": est._compiles,
        },
    }
