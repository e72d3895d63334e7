"""One call of `fit`: its epochs, with validation, callbacks and checkpoints."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import torch
from torch.utils.data import Dataset

from .._util.progress import Progress
from .._util.random_state import set_random_state
from .._util.seeding import Draws
from .._util.tree import tree_map
from ..data.chunk_plan import ChunkPlan
from ..data.drawn_members import drawn_order, longest_drawn, spread_for
from ..data.scaling.inputs_and_targets import Scaling
from ..data.sequences import Sequences
from ..data.sources import Source
from ..data.validation_split import Validation, split
from ..nn.earlier_steps import in_context
from ..nn.stateful import Stateful, batch_norms, in_mode
from .cuda_graph import GraphTrainer
from .evaluation import chunk_plan, evaluate, nothing_counts
from .loop import Trainer
from .native_step import NativeTrainer, native_obstacle
from .position import Position
from .run import Run
from .time_dependence import check_fit, wants_whole_series

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["Checkpoints", "Fit"]

_LOG = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """A run's checkpoints, as `Fit` uses them: see `checkpoint.session.Session`."""

    def open(self, data: Sequences, epochs: int, *, ends: bool) -> Position:
        """Restore the learner, and return the position to start from."""

    def attach(self, run: Run, trainer: Trainer) -> object:
        """Set the run to checkpoint."""

    def __enter__(self) -> object:
        """Start, after callbacks."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """End, before callbacks."""

    def begin_epoch(self) -> None:
        """Start an epoch, after callbacks."""

    def end_epoch(self) -> None:
        """End an epoch, after callbacks."""


class Fit:
    """Runs one call of `Estimator.fit`.

    Parameters
    ----------
    learner
        What is trained.
    data
        The data given to `fit`.
    validation
        As in `Estimator.fit`.
    estimator
        ``run.estimator`` for callbacks.
    callbacks
        Called during training.
    progress
        Show a progress bar on rank 0.
    """

    def __init__(
        self,
        learner: Learner,
        data: Sequences,
        validation: object,
        estimator: object,
        callbacks: list[object],
        *,
        progress: bool,
    ) -> None:
        self._learner = learner
        self._estimator = estimator
        self._callbacks = callbacks
        self._progress = progress
        learner.precision.check(learner.model)
        learner.current_optimizer()  # raises before any work
        self._spec = spec = learner.spec
        self._replicas = learner.replicas
        self._validation: Validation | None = None
        self._by_time = isinstance(validation, Mapping) and "time" in validation
        if isinstance(validation, (tuple, list, Dataset)):
            self._validation = Validation(_other(learner, validation, data))
        elif validation is not None:
            sequential = spec.shard != "time" and spec.fold == 1 and data.lengths is None
            data, self._validation = split(data, validation, carries=sequential)
        if spec.fold > 1:
            data = _folded(data, spec.fold, quiet=not self._replicas.first)
        learner.check_compiled(data)
        self._data = data
        self._spread = spread_for(learner.model)
        normalised = batch_norms(learner.model, of_padding=True)
        self._plan = chunk_plan(
            learner.model, data, spec, self._replicas, drawn=spec.shuffle and data.ragged
        )
        self._draws_members = spec.shuffle and data.ragged and self._plan.mixes
        told = Stateful(learner.model).told_ends
        if normalised and told and self._replicas.first and self._pads():
            warnings.warn(
                f"{', '.join(normalised)}: statistics of BatchNorm count the padding behind the "
                "ends of shorter sequences; use LayerNorm, or pass sequences of one length",
                stacklevel=4,
            )

    def run(self, epochs: int, checkpoints: Checkpoints) -> None:
        """Train for `epochs` epochs, including those of an interrupted call that this continues."""
        learner = self._learner
        self._checkpoints = checkpoints
        self._agree(epochs)
        carried = self._validation is not None and self._validation.carried
        position = checkpoints.open(self._data, epochs, ends=carried)
        before = learner.scaling
        learner.looks.clear()
        try:
            self._check_ids()
            self._scale()
            check_fit(learner, self._data, by_time=self._by_time)
        except BaseException:
            learner.scaling = before
            raise
        learner.squeezed, learner.padding = self._data.squeezed, self._plan.padding
        trainer = _trainer_for(learner)(learner, position)
        left = (position.epochs - position.epoch) * len(self._plan) - position.chunk
        bar = Progress(max(left, 0), shown=self._progress and self._replicas.first)
        run = Run(
            learner, self._data, self._validation, self._estimator, self._callbacks, position,
            chunks=len(self._plan),
        )  # fmt: skip
        checkpoints.attach(run, trainer)
        self._log_start(position)
        with trainer, bar as progress, _calling(run), checkpoints:
            while run.epoch < run.epochs and run.stopped is None:
                self._run_epoch(run, trainer, progress)
        if self._replicas.first:
            stopped = "" if run.stopped is None else f": {run.stopped}"
            _LOG.info("fit ends after epoch %d of %d%s", run.epoch, run.epochs, stopped)

    def _log_start(self, position: Position) -> None:
        if not self._replicas.first or not _LOG.isEnabledFor(logging.INFO):
            return
        obstacle, ranks = native_obstacle(self._learner), self._replicas.comm.size
        _LOG.info(
            "fit starts after epoch %d of %d: %d chunks an epoch, %d rank%s, updates on %s %s",
            position.epoch, position.epochs, len(self._plan), ranks, "s" * (ranks != 1),
            self._learner.device, "in C++" if obstacle is None else f"by torch ({obstacle})",
        )  # fmt: skip

    def _agree(self, epochs: int) -> None:
        """Check that all ranks are set up for the same run, and agree on the seed."""
        learner, data = self._learner, self._data
        shape = f"data of {data.steps} steps and {data.count} sequences"
        if self._spec.shard == "given":
            shape = f"features {[(source.name, source.features) for source in data.leaves]}"
        elif self._validation is not None:
            apart = self._validation.data
            shape += f", {apart.steps} and {apart.count} apart"
        callbacks = [type(callback).__name__ for callback in self._callbacks]
        self._replicas.comm.agree(
            "the run",
            f"{shape}\n{len(self._plan)} chunks\n{epochs} epochs\n{learner.spec}\n"
            f"amp {learner.precision.amp}\ncallbacks {callbacks}\n{self._checkpoints}",
        )
        if learner.drawn_seed is None:
            with Draws(None, learner.device, turns=self._replicas.alone):
                learner.drawn_seed = int(torch.randint(2**62, ()).item())
        learner.drawn_seed = self._replicas.same_number(learner.drawn_seed)

    def _check_ids(self) -> None:
        """Look at all ids before anything is learnt."""
        self._data.check_ids(self._plan.chunks())
        if self._validation is not None:
            learner, data = self._learner, self._validation.data
            plan = chunk_plan(learner.model, data, self._spec, self._replicas, by_time=False)
            data.check_ids(plan.chunks())

    def _scale(self) -> None:
        learner, spec = self._learner, self._spec
        if learner.scaling is None and (spec.scale_x is not None or spec.scale_y is not None):
            methods = spec.scale_x, spec.scale_y
            learner.scaling = Scaling.measure(
                self._data, self._plan.chunks(), methods, self._replicas
            )
        if learner.scaling is not None:
            scaling = learner.scaling.x, learner.scaling.y
            self._data.scaled(*scaling)
            if self._validation is not None:
                self._validation.data.scaled(*scaling)

    def _run_epoch(self, run: Run, trainer: Trainer, progress: Progress) -> None:
        learner, position = self._learner, run.position
        run.begin_epoch()
        self._checkpoints.begin_epoch()
        trainer.begin_epoch()
        assert learner.drawn_seed is not None
        # Seeded by epoch, so that an interrupted run repeats the epoch exactly.
        seed = learner.drawn_seed + run.epoch
        data, plan, order = self._epoch_of(seed)
        learner.padding = plan.padding
        progress.epoch(run.epoch, run.epochs)
        if not position.inside:
            position.inside, position.epoch_start = True, time.monotonic()
        with self._draws(seed) as draws:
            if position.random is not None:
                set_random_state(position.random, learner.device)
            chunks = itertools.islice(plan.chunks(order), position.chunk, None)
            draws.watch()

            def after_update(attention: bool, updates: int = 1) -> bool:
                draws.look()
                return run.after_update(attention, updates)

            trainer.one_by_one = run.sees_updates
            trainer.run(data, chunks, progress, run.has_requests, after_update)
        self._replicas.make_common(learner.model)
        if position.chunk < run.chunks:
            return  # it was stopped
        if not position.sums[1]:
            raise nothing_counts("to train on")
        seconds = time.monotonic() - position.epoch_start
        run.row = {
            "epoch": run.epoch,
            "loss": position.mean_loss,
            "lr": float(learner.optimizer.param_groups[0]["lr"]),
            "updates": run.updates_per_epoch,
            "seconds": seconds,
            "updates_per_second": run.updates_per_epoch / seconds,
        }
        if self._validation is not None:
            run.row["validation_loss"] = self._validate(position)
        progress.ended(run.row, run.epochs)
        learner.history.append(run.row)
        position.inside = False
        run.end_epoch()
        if self._replicas.first:
            _LOG.debug("epoch %d of %d: %s", run.epoch, run.epochs, run.row)
        self._checkpoints.end_epoch()

    def _epoch_of(self, seed: int) -> tuple[Sequences, ChunkPlan, list[int] | None]:
        """Return an epoch's data, its plan, and the order of its blocks; None: that of the plan.

        The same on all ranks.
        """
        data, plan = self._data, self._plan
        if not self._spec.shuffle:
            return data, plan, None
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(plan.blocks, generator=generator).tolist()
        if self._draws_members:
            assert data.lengths is not None
            places = drawn_order(data.lengths, self._spread, generator)
            plan, data = plan.reordered(data.lengths[places]), data.ordered(places)
        return data, plan, order

    def _pads(self) -> bool:
        """Return whether blocks are padded, or may be in some epoch."""
        if not self._draws_members or self._plan.padding:
            return self._plan.padding > 0
        lengths = self._data.lengths
        assert lengths is not None
        return bool((longest_drawn(lengths, self._spread) > lengths).any())

    def _validate(self, position: Position) -> float:
        learner, validation = self._learner, self._validation
        assert validation is not None
        data, spec = validation.data, self._spec
        whole = wants_whole_series(learner, data)
        plan = chunk_plan(learner.model, data, spec, self._replicas, by_time=False, whole=whole)
        model = in_context(learner.model, spec.context)
        with in_mode(learner.model, training=False):
            return evaluate(
                model, learner.objective, validation.data, plan.chunks(), learner.device,
                self._replicas, states=position.ends, warmup=validation.warmup,
            )  # fmt: skip

    def _draws(self, seed: int) -> Draws:
        """Seed dropout, differently on every rank; leave the user's own generator alone."""
        device, alone = self._learner.device, self._replicas.alone
        if self._learner.seed is None and alone:
            # As in a plain loop: torch's global generator, seeded by the user or not.
            return Draws(None, device, turns=True)
        seed = (seed * 1_000_003 + self._replicas.comm.rank) % 2**63
        return Draws(seed, device, turns=alone)


def _trainer_for(learner: Learner) -> type[Trainer]:
    if learner.graphs:
        return GraphTrainer
    native = learner.replicas.in_common([native_obstacle(learner) is None])
    return NativeTrainer if all(native) else Trainer


@contextlib.contextmanager
def _calling(run: Run) -> Iterator[None]:
    """Call callbacks when training begins and ends."""
    try:
        run.call("on_fit_begin")
        yield
    except BaseException as error:
        run.error = error
        raise
    finally:
        run.learner.stop_reason = run.stopped
        run.call("on_fit_end")


def _other(
    learner: Learner, validation: Dataset[object] | Sequence[object], like: Sequences
) -> Sequences:
    """Open separate validation data, with the features of the training data, `like`."""
    parts = (validation,) if isinstance(validation, Dataset) else validation
    if not isinstance(validation, Dataset) and not 2 <= len(parts) <= 3:
        raise ValueError(f"validation must be (x, y) or (x, y, w), got {len(parts)} parts")
    example = learner.example
    data = learner.open(*parts)
    if data.y is None:
        raise TypeError("validation needs targets: items of the dataset must be (x, y)")
    learner.example = example
    for name in "xy":
        own, wanted = (tree_map(_features, getattr(one, name)) for one in (data, like))
        if own != wanted:
            raise ValueError(
                f"{name} of validation must have the features of the training data, {wanted}, got "
                f"{own}"
            )
    return data


def _features(source: Source) -> int | str:
    """Return a source's number of features, or their shape."""
    return source.features[0] if len(source.features) == 1 else str(source.features)


def _folded(data: Sequences, segments: int, *, quiet: bool) -> Sequences:
    if data.ragged:
        raise ValueError("spec.fold cuts series of one length; pass arrays (T, N, F), not lists")
    if data.steps < segments:
        raise ValueError(
            f"spec.fold={segments} cannot cut series of {data.steps} steps into as many segments"
        )
    left = data.steps % segments
    if left and not quiet:
        warnings.warn(
            f"spec.fold={segments} leaves the last {left} of {data.steps} steps out of training",
            stacklevel=5,
        )
    return data.folded(segments)
