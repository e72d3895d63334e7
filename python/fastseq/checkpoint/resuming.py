"""A run of `fit` that goes on from a checkpoint."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..context import in_context
from ..distributed import Communicator
from ..errors import CheckpointError
from ..scaling import Scaling
from ..seeding import untouched
from ..stateful import Stateful, in_mode
from ..tree import Tree, tree_leaves, tree_like
from .contents import (
    check_model,
    check_optimizer,
    load_buffers,
    load_callbacks,
    load_model,
    load_optimizer,
)
from .exchange import broadcast_tree
from .files import read
from .generations import Generations
from .packing import unpack
from .randomness import set_random_state
from .recorder import FORMAT

if TYPE_CHECKING:
    from ..estimator import Estimator
    from ..run import Run
    from ..training import LossMean, Trainer

__all__ = ["Saved", "find"]


def find(
    resume: str | os.PathLike[str] | None, generations: Generations | None, comm: Communicator
) -> Saved | None:
    """Return the checkpoint to go on from; None if there is none, and need not be. Collective.

    Parameters
    ----------
    resume
        As in `Estimator.fit`.
    generations
        The folder that ``"auto"`` means.
    comm
        The ranks: the first one reads.

    Raises
    ------
    CheckpointError
        `resume` names something that is no whole checkpoint.
    """
    if resume is None:
        return None
    if not isinstance(resume, str | os.PathLike):
        raise TypeError(f'resume must be None, "auto", a folder or a file, got {resume!r}')
    if resume == "auto" and generations is None:
        raise ValueError('resume="auto" needs a folder: fit(…, checkpoint=folder, resume="auto")')
    found = _read(resume, generations) if comm.rank == 0 else None
    where, tree = broadcast_tree(found, comm)
    return None if tree is None else Saved(where, tree, comm)


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
        content = Generations(path).newest() if path.is_dir() else read(path)
        if content is None:
            raise CheckpointError(f"resume: there is no whole checkpoint in {path}")
    tensors, text = content
    try:
        tree = unpack(text, tensors)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a checkpoint: {error}") from error
    if not isinstance(tree, dict) or "ranks" not in tree:
        raise CheckpointError(f"{path} is a file of fastseq, but no checkpoint of fit")
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {tree.get('format')}, this version of fastseq reads {FORMAT}"
        )
    return f"the checkpoint in {path}" if path.is_dir() else str(path), tree


class Saved:
    """A checkpoint that was read, on all ranks.

    Parameters
    ----------
    where
        What messages call it.
    tree
        What it holds.
    comm
        The ranks that go on with it.
    """

    def __init__(self, where: str, tree: dict[str, Any], comm: Communicator) -> None:
        self._where = where
        self._tree = tree
        self._first_rank = comm.rank == 0
        ranks = tree["ranks"]
        self._own = ranks[comm.rank] if len(ranks) == comm.size else None
        self._inside = bool(tree["inside"])

    @property
    def index(self) -> int:
        """How many chunks of the epoch that comes next are done."""
        return int(self._tree["index"]) if self._inside and self._own is not None else 0

    @property
    def first(self) -> int:
        """How many epochs were done when the interrupted call of `fit` began."""
        return int(self._tree["first"])

    def is_past_of(self, est: Estimator) -> bool:
        """Whether it tells nothing that `est` has not done itself: `fit` is called once more."""
        done = est.history_.steps
        tree = self._tree
        ended = tree["stopped"] is not None or len(tree["history"]) >= tree["epochs"]
        return done > tree["step"] or (done > 0 and done == tree["step"] and ended)

    def check(self, est: Estimator, sameness: dict[str, Any]) -> None:
        """Make sure that it is of such an estimator, and tell what cannot be as it was.

        Raises
        ------
        CheckpointError
            The model or the optimizer is another one; nothing has been changed.
        """
        check_model(est.model, self._tree["model"], self._where)
        check_optimizer(est.optimizer, self._tree["optimizer"], self._where)
        then = self._tree["sameness"]
        plan = _differences(then["plan"], sameness["plan"])
        bits = _differences(then["bits"], sameness["bits"])
        if plan:
            self._own = None
        if not (plan or bits) or not self._first_rank:
            return
        if not plan:
            how = "it goes on from the same step, but rounding may differ"
        elif self._inside:
            how = (
                "it goes on with the weights and the optimizer of that step, but with epoch "
                f"{len(self._tree['history']) + 1} from its begin, and other random numbers"
            )
        else:
            how = "it goes on after the same epoch, but with other sums and random numbers"
        warnings.warn(
            f"{self._where} is of a run with {', '.join(f'{a} {b}' for a, b, _ in plan + bits)}, "
            f"this one has {', '.join(f'{a} {c}' for a, _, c in plan + bits)}: {how}, so its "
            "results are not those of a run without interruption, bit for bit",
            stacklevel=6,
        )

    def restore(self, est: Estimator) -> None:
        """Give an estimator weights, history and what else is needed before a run is made."""
        tree = self._tree
        load_model(est.model, tree["model"])
        load_optimizer(est.optimizer, tree["optimizer"])
        est._precision.load_state_dict(tree["scaler"])
        est.history_.replace(tree["history"])
        est._drawn_seed = tree["seed"]
        est.scaling_ = None if tree["scaling"] is None else Scaling.from_state(tree["scaling"])

    def begin(self, run: Run) -> Saved | None:
        """Take up the run after its callbacks have begun; return self if it is within an epoch."""
        run.stopped = self._tree["stopped"]
        run.go_on(self._tree["step"], self._tree["seconds"])
        self._hand_back(run, quiet=False)
        return self if self._inside and self._own is not None and run.stopped is None else None

    def begin_epoch(self, run: Run) -> None:
        """Take up the epoch after its callbacks have begun it."""
        run.index = self._tree["index"]
        self._hand_back(run, quiet=True)
        if self._own is not None and self._own["wish"] is not None:
            run.stop(self._own["wish"])

    def _hand_back(self, run: Run, *, quiet: bool) -> None:
        """Give callbacks, model, optimizer and all generators of random numbers their states.

        Callbacks may change model and optimizer when they begin, and draw numbers.
        """
        load_callbacks(
            run.estimator.callbacks, self._tree["callbacks"], quiet=quiet or not run.first
        )
        load_model(run.model, self._tree["model"])
        load_optimizer(run.optimizer, self._tree["optimizer"])
        if self._own is not None:
            if self._own["buffers"] is not None:
                load_buffers(run.model, self._own["buffers"])
            run.estimator._replicas.since_common = self._own["since_common"]
            state = self._own["outside" if self._inside else "random"]
            set_random_state(state, run.estimator.device)

    def within(self, run: Run, trainer: Trainer, losses: LossMean) -> float:
        """Go to the step after which it was saved; return how many seconds the epoch took."""
        est, own, tree = run.estimator, self._own, self._tree
        assert own is not None
        total, weights, losses.last = tree["sums"]
        losses.sums = total, weights
        run.loss = losses.last
        like = None if own["plain"] else _example_state(est)

        def state_on_device(state: Tree) -> Tree:
            leaves = [leaf.to(est.device) for leaf in tree_leaves(state)]
            return tree_like(like if like is not None and leaves else state, leaves)

        trainer.stateful.state = state_on_device(own["state"])
        if trainer.ends is not None and own["ends"] is not None:
            ends = own["ends"].items()
            trainer.ends.update((block, state_on_device(state)) for block, state in ends)
        set_random_state(own["random"], est.device)
        return float(tree["epoch_seconds"])


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(key, then[key], value) for key, value in now.items() if then.get(key) != value]


def _example_state(est: Estimator) -> Tree:
    """Return a state as the model makes it: in its kinds of tuples and dicts."""
    m = Stateful(in_context(est.model, est.spec.context))
    with torch.no_grad(), untouched(est.device), in_mode(est.model, training=False):
        m(est._example)
    return m.state
