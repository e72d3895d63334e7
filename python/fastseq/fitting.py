"""One call of `fit`: epochs of training, and what belongs to each."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from .checkpoint.saves import Saves
from .context import in_context
from .data.sequences import Sequences
from .data.sources import Source
from .data.validation import Validation, split
from .evaluating import chunk_plan, evaluate, nothing_counts
from .looking import check_fit, wants_whole_series
from .progress import Progress
from .run import Run
from .scaling import Scaling
from .seeding import Draws
from .stateful import Stateful, batch_norms, in_mode
from .training import Trainer
from .tree import tree_map

if TYPE_CHECKING:
    from .estimator import Estimator

__all__ = ["Fit"]


class Fit:
    """What one call of `Estimator.fit` works with; see there.

    Parameters
    ----------
    est
        The estimator.
    data
        What it was given.
    validation
        As in `Estimator.fit`.
    """

    def __init__(self, est: Estimator, data: Sequences, validation: Any) -> None:
        self._est = est
        est._precision.check(est.model)
        est._current_optimizer()  # or what is wrong with it, before any work
        self._spec = spec = est.spec
        self._replicas = est._replicas
        self._validation: Validation | None = None
        self._by_time = isinstance(validation, Mapping) and "time" in validation
        if isinstance(validation, (tuple, list, Dataset)):
            self._validation = Validation(_other(est, validation, data))
        elif validation is not None:
            sequential = spec.shard != "time" and spec.fold == 1 and data.lengths is None
            data, self._validation = split(data, validation, carries=sequential)
        if spec.fold > 1:
            data = _folded(data, spec.fold, quiet=not self._replicas.first)
        est._check_compiled(data)
        self._data = data
        normalised = batch_norms(est.model)
        self._plan = chunk_plan(est.model, data, spec, self._replicas)
        told = Stateful(est.model).told_ends
        if normalised and self._plan.padding and told and self._replicas.first:
            warnings.warn(
                f"{', '.join(normalised)}: statistics of BatchNorm count the padding behind the "
                "ends of shorter sequences; take LayerNorm, or pass sequences of one length",
                stacklevel=4,
            )

    def run(self, epochs: int, checkpoint: Any = None, resume: Any = None) -> None:
        """Train."""
        est = self._est
        self._saves = saves = Saves(est, checkpoint, resume)
        self._agree(epochs)
        saves.open(self._data)
        before = est.scaling_
        est._looks.clear()
        try:
            self._scale()
            check_fit(est, self._data, by_time=self._by_time)
        except BaseException:
            est.scaling_ = before
            raise
        est._squeezed, est.padding_ = self._data.squeezed, self._plan.padding
        trainer = est._trainer(
            est.model, est._loss, est._current_optimizer, self._spec, est.device,
            self._replicas, est._precision,
        )  # fmt: skip
        if self._validation is not None and self._validation.carried:
            trainer.ends = {}
        epochs -= len(est.history_) - saves.first  # what an interrupted call has done
        left = max(epochs * len(self._plan) - saves.index, 0)
        bar = Progress(left, shown=est.progress and self._replicas.first)
        run = Run(est, self._data, self._validation, epochs=epochs, steps=len(self._plan))
        run.ends = trainer.ends
        saves.attach(run, trainer)
        with trainer, bar as progress, _calling(run), saves:
            while run.epoch < run.epochs and run.stopped is None:
                self._run_epoch(run, trainer, progress)

    def _agree(self, epochs: int) -> None:
        """Make sure that all ranks are about to make the same steps."""
        est, data = self._est, self._data
        shape = f"data of {data.steps} steps and {data.count} sequences"
        if self._spec.shard == "given":
            shape = f"features {[(source.name, source.features) for source in data.leaves]}"
        elif self._validation is not None:
            apart = self._validation.data
            shape += f", {apart.steps} and {apart.count} apart"
        callbacks = [type(callback).__name__ for callback in est.callbacks]
        self._replicas.comm.agree(
            "the run",
            f"{shape}\n{len(self._plan)} chunks\n{epochs} epochs\n{est.spec}\namp {est.amp}\n"
            f"callbacks {callbacks}\n{self._saves}",
        )
        if est._drawn_seed is None:
            with Draws(None, est.device, turns=self._replicas.alone):
                est._drawn_seed = int(torch.randint(2**62, ()).item())
        est._drawn_seed = self._replicas.same_number(est._drawn_seed)

    def _scale(self) -> None:
        est, spec = self._est, self._spec
        if est.scaling_ is None and (spec.scale_x is not None or spec.scale_y is not None):
            methods = spec.scale_x, spec.scale_y
            est.scaling_ = Scaling.measure(self._data, self._plan.chunks(), methods, self._replicas)
        if est.scaling_ is not None:
            scaling = est.scaling_.x, est.scaling_.y
            self._data.scaled(*scaling)
            if self._validation is not None:
                self._validation.data.scaled(*scaling)

    def _run_epoch(self, run: Run, trainer: Trainer, progress: Progress) -> None:
        est, plan = self._est, self._plan
        run.begin_epoch()
        self._saves.begin_epoch()
        trainer.begin_epoch()
        assert est._drawn_seed is not None
        # Seeded by epoch, so that an epoch is the same whether or not the run was interrupted.
        seed = est._drawn_seed + run.epoch
        order = None
        if self._spec.shuffle:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(plan.blocks, generator=generator).tolist()
        progress.epoch(run.epoch, run.epochs)
        begin = time.perf_counter()
        losses = trainer.new_losses(f"epoch {run.epoch}")
        with self._draws(seed) as draws:
            begin = self._saves.within_epoch(trainer, losses, begin)
            chunks = itertools.islice(plan.chunks(order), run.index, None)
            draws.watch()

            def after_step(loss: float, attention: bool) -> bool:
                draws.look()
                return run.after_step(loss, attention)

            trainer.run(self._data, chunks, losses, progress, run.asks, after_step)
        self._replicas.make_common(est.model)
        if run.index < run.steps:
            return  # it was stopped
        if not losses.weight:
            raise nothing_counts("to train on")
        seconds = time.perf_counter() - begin
        run.row = {
            "epoch": run.epoch,
            "loss": losses.mean,
            "lr": float(est.optimizer.param_groups[0]["lr"]),
            "steps": len(plan),
            "seconds": seconds,
            "steps_per_second": len(plan) / seconds if len(plan) else 0.0,
        }
        if self._validation is not None:
            run.row["validation_loss"] = loss = self._validate(trainer)
            progress.validated(loss)
        est.history_.append(run.row)
        run.end_epoch()
        self._saves.end_epoch()

    def _validate(self, trainer: Trainer) -> float:
        est, validation = self._est, self._validation
        assert validation is not None
        data, spec = validation.data, self._spec
        whole = wants_whole_series(est, data)
        plan = chunk_plan(est.model, data, spec, self._replicas, by_time=False, whole=whole)
        model = in_context(est.model, spec.context)
        with in_mode(est.model, training=False):
            return evaluate(
                model, est._loss, validation.data, plan.chunks(), est.device, self._replicas,
                states=trainer.ends, warmup=validation.warmup,
            )  # fmt: skip

    def _draws(self, seed: int) -> Draws:
        """Seed dropout, differently on every rank; leave the user's own generator alone."""
        device, alone = self._est.device, self._replicas.alone
        if self._est.seed is None and alone:
            # As in a plain loop: torch's global generator, seeded by the user or not.
            return Draws(None, device, turns=True)
        seed = (seed * 1_000_003 + self._replicas.comm.rank) % 2**63
        return Draws(seed, device, turns=alone)


@contextlib.contextmanager
def _calling(run: Run) -> Iterator[None]:
    """Tell callbacks when training begins and ends."""
    try:
        run.call("on_fit_begin")
        yield
    except BaseException as error:
        run.error = error
        raise
    finally:
        run.estimator.stop_reason_ = run.stopped
        run.call("on_fit_end")


def _other(est: Estimator, validation: Any, like: Sequences) -> Sequences:
    """Open data for validation that are apart from those for training, `like` which they are."""
    parts = (validation,) if isinstance(validation, Dataset) else validation
    if not isinstance(validation, Dataset) and not 2 <= len(parts) <= 3:
        raise ValueError(f"validation must be (x, y) or (x, y, w), got {len(parts)} parts")
    example = est._example
    data = est._open(*parts)
    if data.y is None:
        raise TypeError("validation needs targets: items of the dataset must be (x, y)")
    est._example = example
    for name in "xy":
        own, wanted = (tree_map(_features, getattr(one, name)) for one in (data, like))
        if own != wanted:
            raise ValueError(
                f"{name} of validation must have the features of that to train on, {wanted}, "
                f"got {own}"
            )
    return data


def _features(source: Source) -> Any:
    """Return how many features a source has, or their shape."""
    return source.features[0] if len(source.features) == 1 else str(source.features)


def _folded(data: Sequences, segments: int, *, quiet: bool) -> Sequences:
    if data.ragged:
        raise ValueError("spec.fold cuts series of one length; pass arrays (T, N, F), not lists")
    if data.steps < segments:
        raise ValueError(f"spec.fold={segments} cuts series of {data.steps} steps into nothing")
    left = data.steps % segments
    if left and not quiet:
        warnings.warn(
            f"spec.fold={segments} leaves the last {left} of {data.steps} steps out of training",
            stacklevel=5,
        )
    return data.folded(segments)
