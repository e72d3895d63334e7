"""The checkpoints of one call of `fit`: those it writes, and the one it continues from."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._util.random_state import random_state, set_random_state
from .._util.seeding import untouched
from .._util.tree import Tree, tree_leaves, tree_like
from ..data.scaling.inputs_and_targets import Scaling
from ..errors import CheckpointError
from ..nn import ops as _ops
from ..nn.earlier_steps import in_context
from ..nn.stateful import Stateful, in_mode
from ..training.native_layers import has_bf16
from ..training.position import Position
from .broadcast import broadcast_tree, gather_trees
from .checks import check_random, check_run
from .contents import (
    callback_states,
    check_model,
    check_optimizer,
    load_buffers,
    load_callbacks,
    load_model,
    load_optimizer,
    model_state,
)
from .encoding import decode, encode
from .estimator_files import restoring
from .folder import Generations
from .format import read, tensors_checksum
from .settings import Checkpoint, Keeper
from .signals import Signals

if TYPE_CHECKING:
    from ..data.sequences import Sequences
    from ..training.learner import Learner
    from ..training.loop import Trainer
    from ..training.run import Run

__all__ = ["Session"]

_LOG = logging.getLogger(__name__)

FORMAT = 1
"""The version of the contents; files of other versions are not read."""


class Session:
    """Writes checkpoints, or continues from one, if asked to; a context manager around the epochs.

    Inactive unless `checkpoint` or `resume` is given, or a callback is a `Keeper`. `Run` calls it
    after all other callbacks, at the end of each update and epoch. While it is entered, signals ask
    for checkpoints, too.

    Parameters
    ----------
    learner, callbacks
        What is saved and restored.
    checkpoint, resume
        As in `Estimator.fit`.
    shown
        Whether to say on standard error that training continues from a checkpoint.
    """

    def __init__(
        self, learner: Learner, callbacks: list[object], checkpoint: object, resume: object,
        *, shown: bool = False,
    ) -> None:  # fmt: skip
        self._learner = learner
        self._replicas = learner.replicas
        self._callbacks = callbacks
        self._keeper, checkpoint, resume = _kept(learner, callbacks, checkpoint, resume)
        self._settings = None if checkpoint is None else Checkpoint.of(checkpoint)
        self._generations: Generations | None = None
        if self._settings is not None:
            self._generations = Generations(self._settings.folder, self._settings.keep)
        self._resume, self._shown = resume, shown
        self._saved: _Saved | None = None  # still to be restored
        self._sameness: dict[str, Any] = {}
        self._pending: frozenset[str] = frozenset()
        self._alarm = math.inf

    def __str__(self) -> str:
        """Describe the settings that all ranks must share: not the folder, as rank 0's is used."""
        settings = self._settings and dataclasses.replace(self._settings, folder="…")
        resume = self._resume if self._resume in (None, "auto") else "a path"
        return f"checkpoint {settings}, resume {resume}"

    def open(self, data: Sequences, epochs: int, *, ends: bool) -> Position:
        """Find the checkpoint to continue from, if any, and restore the learner. Collective.

        Parameters
        ----------
        data
            The training data.
        epochs
            The number of epochs of the call, including those of an interrupted one.
        ends
            Whether validation needs the last state of each block.

        Returns
        -------
        Position
            The position to start from.

        Raises
        ------
        OSError
            The folder cannot be written.
        BusyError
            Another run writes to it.
        CheckpointError
            There is no such checkpoint, or it is of another model or optimizer.
        """
        learner = self._learner
        if self._settings is not None or self._resume is not None:
            if self._generations is not None and self._replicas.first:
                self._generations.take()
            self._sameness = _sameness(learner, data)
            saved = self._find()
            if saved is not None and not (self._resume == "auto" and saved.is_past_of(learner)):
                with restoring(saved.where, "resume"):
                    saved.check(learner, self._sameness)
                    saved.restore(learner)
                self._saved = saved
                if self._replicas.first:
                    _LOG.info("fit continues from %s", saved.where)
                    if self._shown:  # next to the bar, which then starts late
                        print(f"fit continues from {saved.where}", file=sys.stderr, flush=True)
            elif self._replicas.first and self._generations is not None and not learner.history:
                self._warn_of_others(self._generations)
        done = len(learner.history)
        first = done if self._saved is None else self._saved.first
        position = Position(first, first + epochs, epoch=done, updates=learner.history.updates)
        position.ends = {} if ends else None
        if self._saved is not None:
            with restoring(self._saved.where, "resume"):
                self._saved.place(learner, position)
        return position

    def _warn_of_others(self, generations: Generations) -> None:
        if self._resume is None and generations.paths():
            warnings.warn(
                f"the folder {generations.folder} has checkpoints of another run, which those of "
                'this one will replace; to continue from them, pass resume="auto"',
                stacklevel=6,
            )

    def attach(self, run: Run, trainer: Trainer) -> Session:
        """Set the run to checkpoint, once it has all its callbacks."""
        self._run = run
        self._position = run.position
        self._trainer = trainer
        self._signals = Signals(run.request)
        if self._generations is not None:
            run.add(self)
        return self

    def __enter__(self) -> Session:
        """Restore what callbacks may have changed in ``on_fit_begin``."""
        if self._saved is not None:
            self._saved.restore_again(self._learner, self._callbacks, quiet=not self._run.first)
            if not self._position.inside:
                self._saved = None
        if self._generations is not None:
            encode(self._tree(None))  # raises now if something cannot be saved
            self._signals.__enter__()
            self._saved_now()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._generations is None:
            return
        try:
            self._generations.finish()
        except OSError:
            if kind is None:
                raise
        finally:
            self._signals.__exit__()

    def close(self) -> None:
        """Let others write to the folder."""
        if self._generations is not None:
            self._generations.release()

    def begin_epoch(self) -> None:
        """Restore what callbacks may have changed in ``on_epoch_begin`` of an interrupted epoch."""
        saved, self._saved = self._saved, None
        if saved is not None:
            saved.restore_again(self._learner, self._callbacks, quiet=True)
            if saved.stop_request is not None:
                self._run.stop(saved.stop_request)
        if self._generations is not None:
            self._position.outside = random_state(self._learner.device)

    def on_batch_end(self, run: Run) -> None:
        """Save if it is due after this update."""
        assert self._settings is not None
        assert self._generations is not None
        if time.monotonic() >= self._alarm:
            self._alarm = math.inf
            run.request("checkpoint")
        every = self._settings.every_updates
        due = every is not None and run.updates % every == 0
        if due or run.requests or run.stopped is not None:
            self._save(run.requests)
        else:
            self._generations.raise_if_failed()

    def on_epoch_end(self, run: Run) -> None:
        """Keep the requests until the ranks know whether to continue."""
        self._pending = run.requests

    def end_epoch(self) -> None:
        """Save if it is due after this epoch, after all callbacks."""
        if self._settings is None:
            return
        run, every = self._run, self._settings.every_epochs
        requests, run.requests = self._pending | run.requests, frozenset()
        due = every is not None and (run.epoch - self._position.first) % every == 0
        if due or requests or run.epoch == run.epochs or run.stopped is not None:
            self._save(requests)
            if self._keeper is not None:
                assert self._generations is not None
                self._generations.finish()
                self._keeper.on_checkpoint(run)
                run.agree()

    def _save(self, requests: frozenset[str]) -> None:
        """Save the run; end the program if ``"terminate"`` was requested."""
        assert self._generations is not None
        comm = self._replicas.comm
        self._trainer.settle()
        ranks = gather_trees(self._own(), comm)
        if self._replicas.first:
            self._generations.write(*encode(self._tree(ranks)))
            folder = self._generations.folder
            _LOG.debug("checkpoint after update %d to %s", self._run.updates, folder)
        self._saved_now()
        if "terminate" in requests:
            self._generations.finish()
            comm.barrier()  # a rank that ends may end the others
            self._signals.terminate()

    def _saved_now(self) -> None:
        assert self._settings is not None
        minutes = self._settings.every_minutes if self._replicas.first else None
        self._alarm = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def _tree(self, ranks: list[Tree] | None) -> dict[str, Any]:
        """Return the state that all ranks share, with each rank's own."""
        learner, position, now = self._learner, self._position, time.monotonic()
        inside = position.inside
        return {
            "format": FORMAT,
            "model": model_state(learner.model),
            "optimizer": {
                "kind": type(learner.optimizer).__name__,
                "state": learner.optimizer.state_dict(),
            },
            "scaler": learner.precision.state_dict(),
            "callbacks": callback_states(self._callbacks),
            "history": list(learner.history),
            "scaling": None if learner.scaling is None else learner.scaling.state(),
            "seed": learner.drawn_seed,
            "first": position.first,
            "epochs": position.epochs,
            "updates": position.updates,
            "chunk": position.chunk if inside else 0,
            "inside": inside,
            "sums": (*position.sums, position.loss) if inside else None,
            "stopped": position.stopped,
            "seconds": now - position.start,
            "epoch_seconds": now - position.epoch_start if inside else 0.0,
            "sameness": self._sameness,
            "ranks": ranks,
        }

    def _own(self) -> dict[str, Any]:
        """Return this rank's own state. Collective."""
        learner, position, replicas = self._learner, self._position, self._replicas
        own: dict[str, Any] = {
            "random": random_state(learner.device),
            "buffers": None,
            "since_common": replicas.since_common,
        }
        if not replicas.alone:  # each may have statistics of its own data
            buffers = dict(learner.model.named_buffers())
            checksum = tensors_checksum(buffers)
            if replicas.same_number(checksum) != checksum:
                own["buffers"] = buffers
        if not position.inside:
            return own
        states = {"state": position.state, "ends": position.ends}
        stop_request = self._run.stop_request
        return {
            **own, "outside": position.outside, "stop_request": stop_request,
            "plain": _restorable(states), **states,
        }  # fmt: skip

    def _find(self) -> _Saved | None:
        """Return the checkpoint to continue from, if there is one. Collective."""
        resume, comm = self._resume, self._replicas.comm
        if resume is None:
            return None
        if not isinstance(resume, str | os.PathLike):
            raise TypeError(f'resume must be None, "auto", a folder or a file, got {resume!r}')
        if resume == "auto" and self._generations is None:
            raise ValueError(
                'resume="auto" needs a folder: fit(…, checkpoint=folder, resume="auto")'
            )
        found = _read(resume, self._generations) if comm.rank == 0 else None
        where, tree = broadcast_tree(found, comm)
        if tree is None:
            return None
        with restoring(where, "resume"):
            check_run(tree)
            return _Saved(where, tree, comm.rank, comm.size)


def _read(
    resume: str | os.PathLike[str], generations: Generations | None
) -> tuple[str, dict[str, Any] | None]:
    if resume == "auto":
        assert generations is not None
        path, content = generations.folder, generations.newest()
        if content is None:
            return str(path), None
    else:
        path = Path(resume)
        if not path.exists():
            raise FileNotFoundError(
                errno.ENOENT, 'resume: there is no such folder or file; "auto" continues from '
                "that of checkpoint", str(path),
            )  # fmt: skip
        content = Generations(path).newest() if path.is_dir() else read(path)
        if content is None:
            raise CheckpointError(f"resume: there is no complete checkpoint in {path}")
    tensors, text = content
    try:
        tree = decode(text, tensors)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a checkpoint: {error}") from error
    if not isinstance(tree, dict) or "ranks" not in tree:
        raise CheckpointError(f"{path} was written by fastseq, but is not a checkpoint of fit")
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {tree.get('format')!r:.100}, but this version of fastseq reads "
            f"format {FORMAT}"
        )
    return f"the checkpoint in {path}" if path.is_dir() else str(path), tree


def _kept(
    learner: Learner, callbacks: list[object], checkpoint: object, resume: object
) -> tuple[Keeper | None, object, object]:
    """Return the `Keeper` among the callbacks, and where to save and from where to continue."""
    keepers = [callback for callback in callbacks if isinstance(callback, Keeper)]
    if not keepers:
        return None, checkpoint, resume
    name = type(keepers[0]).__name__
    if len(keepers) > 1 or checkpoint is not None or resume is not None:
        raise ValueError(
            f"{name} keeps the checkpoints of fit, and continues from them: pass one such "
            "callback, and neither checkpoint=… nor resume=…"
        )
    return keepers[0], *keepers[0].open(learner)


class _Saved:
    """The contents of a checkpoint, on each rank.

    Parameters
    ----------
    where
        Its name in messages.
    tree
        Its contents.
    rank, size
        This rank, and the number of ranks.
    """

    def __init__(self, where: str, tree: dict[str, Any], rank: int, size: int) -> None:
        self.where = where
        self._tree = tree
        self._first_rank = rank == 0
        self._own = tree["ranks"][rank] if len(tree["ranks"]) == size else None

    @property
    def first(self) -> int:
        """The number of epochs done before the interrupted call of `fit`."""
        return int(self._tree["first"])

    @property
    def stop_request(self) -> str | None:
        """Why this rank wanted `fit` to end, if not agreed on yet."""
        return None if self._own is None else self._own["stop_request"]

    def is_past_of(self, learner: Learner) -> bool:
        """Whether `learner` has already done all of this: `fit` is called once more."""
        done = learner.history.updates
        tree = self._tree
        ended = tree["stopped"] is not None or len(tree["history"]) >= tree["epochs"]
        return done > tree["updates"] or (done > 0 and done == tree["updates"] and ended)

    def check(self, learner: Learner, sameness: dict[str, Any]) -> None:
        """Raise unless model and optimizer match; warn if results cannot be the same.

        Raises
        ------
        CheckpointError
            The model or the optimizer differs; nothing has been changed.
        """
        check_model(learner.model, self._tree["model"], self.where)
        check_optimizer(learner.optimizer, self._tree["optimizer"], self.where)
        then = self._tree["sameness"]
        plan = _differences(then["plan"], sameness["plan"])
        bits = _differences(then["bits"], sameness["bits"])
        if plan:
            self._own = None
        if not (plan or bits) or not self._first_rank:
            return
        if not plan:
            how = "training continues after the same update, but rounding may differ"
        elif self._tree["inside"]:
            how = (
                "training continues with the weights and the optimizer of that update, but starts "
                f"epoch {len(self._tree['history']) + 1} again, with other random numbers"
            )
        else:
            how = "training continues after the same epoch, but with other sums and random numbers"
        warnings.warn(
            f"{self.where} is from a run with {', '.join(f'{a} {b}' for a, b, _ in plan + bits)}, "
            f"this one has {', '.join(f'{a} {c}' for a, _, c in plan + bits)}: {how}, so results "
            "are not bitwise those of an uninterrupted run",
            stacklevel=6,
        )

    def restore(self, learner: Learner) -> None:
        """Restore a learner's weights, history, and all else that is needed to make a run."""
        tree = self._tree
        load_model(learner.model, tree["model"])
        load_optimizer(learner.optimizer, tree["optimizer"])
        learner.precision.load_state_dict(tree["scaler"])
        learner.history.replace(tree["history"])
        learner.drawn_seed = tree["seed"]
        learner.scaling = None if tree["scaling"] is None else Scaling.from_state(tree["scaling"])

    def place(self, learner: Learner, position: Position) -> None:
        """Restore the position."""
        tree, own, now = self._tree, self._own, time.monotonic()
        position.updates = tree["updates"]
        position.stopped = tree["stopped"]
        position.start = now - tree["seconds"]
        if own is not None:
            check_random(own, learner.device)
        if not tree["inside"] or own is None or position.stopped is not None:
            return
        position.inside = True
        position.chunk = tree["chunk"]
        total, weight, position.loss = tree["sums"]
        position.sums = total, weight
        position.epoch_start = now - tree["epoch_seconds"]
        position.random = own["random"]
        like = None if own["plain"] else _example_state(learner)

        def on_device(state: Tree) -> Tree:
            leaves = [leaf.to(learner.device) for leaf in tree_leaves(state)]
            return tree_like(like if like is not None and leaves else state, leaves)

        position.state, position.origin = on_device(own["state"]), self.where
        if position.ends is not None and own["ends"] is not None:
            position.ends |= {block: on_device(state) for block, state in own["ends"].items()}

    def restore_again(self, learner: Learner, callbacks: list[object], *, quiet: bool) -> None:
        """Restore callbacks, and once more model, optimizer and random generators.

        Callbacks may change these in ``on_fit_begin``, and draw random numbers.
        """
        tree, own = self._tree, self._own
        with restoring(self.where, "resume"):
            load_callbacks(callbacks, tree["callbacks"], quiet=quiet)
            load_model(learner.model, tree["model"])
            load_optimizer(learner.optimizer, tree["optimizer"])
            if own is not None:
                if own["buffers"] is not None:
                    load_buffers(learner.model, own["buffers"])
                learner.replicas.since_common = own["since_common"]
                set_random_state(own["outside" if tree["inside"] else "random"], learner.device)


def _sameness(learner: Learner, data: Sequences) -> dict[str, Any]:
    """Return what a position within an epoch depends on, and what rounding depends on."""
    spec, comm = learner.spec, learner.replicas.comm
    size = [data.steps, data.count]
    if spec.shard == "given":
        ranks = comm.allreduce_(torch.tensor(size, dtype=torch.float64), "sum")
        size = [int(number) for number in ranks]
    names = ("batchsize", "seqsize", "accumulate", "shuffle", "fold", "shard")
    rounds = learner.precision.amp == "bf16" and has_bf16()
    return {
        "plan": {
            "ranks": comm.size,
            "time steps": size[0],
            "sequences": size[1],
            **{f"spec.{name}": getattr(spec, name) for name in names},
            "seed": learner.seed,
        },
        "bits": {
            "device": learner.device.type,
            "threads": torch.get_num_threads(),
            "transport": comm.transport if comm.size > 1 else "single",
            "kernels": _ops.active_isa + (", bf16" if rounds else ""),
            "torch": str(torch.__version__),
            "fastseq": importlib.metadata.version("fastseq-torch"),
            "amp": learner.precision.amp,
            "compile": learner.compiles,
        },
    }


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, object, object]]:
    return [(key, then[key], value) for key, value in now.items() if then.get(key) != value]


def _restorable(tree: Tree) -> bool:
    """Whether a tree has only containers that a file restores unchanged."""
    if isinstance(tree, dict):
        return type(tree) is dict and all(map(_restorable, tree.values()))
    if isinstance(tree, tuple | list):
        return type(tree) in (tuple, list) and all(map(_restorable, tree))
    return True


def _example_state(learner: Learner) -> Tree:
    """Return a state with the model's own kinds of tuples and dicts."""
    m = Stateful(in_context(learner.model, learner.spec.context))
    with torch.no_grad(), untouched(learner.device), in_mode(learner.model, training=False):
        m(learner.example)
    return m.state
