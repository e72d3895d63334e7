"""Base of the scikit-learn estimators: makes an `Estimator` from hyperparameters; warm starts."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn, optim

from .._util.arguments import FromArguments, check_types
from .._util.spelling import meant
from .._util.tree import Tree
from ..callbacks import Log
from ..data.chunk_plan import ChunkPlan
from ..data.drawn_members import spread_for
from ..data.samples_first import SamplesFirst
from ..data.scaling.affine import Affine
from ..data.scaling.inputs_and_targets import Scaling
from ..data.sequences import Sequences
from ..distributed import communicator
from ..distributed.replicas import Replicas
from ..estimator import Estimator
from ..nn import Averaged, Chain
from ..nn.stateful import batch_norms, carries, steps_apart
from ..training.history import History
from ..training.run import Callback, check_callbacks
from ..training.spec import Spec
from .automatic_training import enough_epochs, learning_rate, warn_if_few
from .early_stopping import keeping_best
from .inputs.missing_inputs import fill_known
from .losses_and_optimizers import optimizer_factory
from .named_modules import ColumnSizes, Sizes, make_module
from .named_schedules import check_schedule, scheduled
from .sequence_losses import AtLastStep, EachMember, PerSequence, last_step_only, over_steps
from .shuffling import Shuffler

__all__ = ["SequenceEstimator", "Start", "Task"]

_LOG = logging.getLogger(__name__)

# Changing these keeps what has been learnt: a warm start continues.
_OPTIMIZER = ("optimizer", "lr", "weight_decay", "decay_biases")
_SCALINGS = ("standard", "robust", None)  # by statistics of the training data
# by each sequence itself, after "robust"
_BY_INSTANCE = ("instance", "both")
_GOES_ON = {"epochs", "callbacks", "verbose", "warm_start", "schedule", *_OPTIMIZER}


@dataclasses.dataclass
class Task:
    """A training problem, time-major, as `Estimator.fit` takes it.

    Parameters
    ----------
    x
        Inputs: samples ``(T, N, F)``, or a list of ``(T_i, F)``.
    y
        Targets: samples ``(T, N, K)``, or a list of ``(T_i, K)``; ``(N, K)``: one per sequence.
    w
        Weights ``(N,)``, ``(T, N)`` or a list of ``(T_i,)``; None: all 1.
    validation
        As in `Estimator.fit`.
    n_in, n_out
        Numbers of features and of outputs.
    dtype
        The dtype to compute in.
    loss
        Loss over chunks, see `Estimator`.
    steps
        Time steps per chunk if ``seqsize`` is None.
    scale_y
        How to scale targets.
    form
        See `SequenceEstimator._begin`, for `SequenceEstimator._train` without `start`.
    module, scale_x
        Hyperparameters, where "auto" has been replaced.
    head
        A layer to put after the module; None: none.
    scores
        How many outputs are scores of each target's classes; None: they are no scores.
    labels
        The classes of a single target, by number; None: there are none.
    image
        ``(W, H, C)`` if each step is an image; None: it is not.
    columns
        Which features are codes of categories, or scaled already; None: none.
    best
        Whether to keep the weights of the epoch with the least validation loss, and to stop when
        none gets better, unless a schedule ends training.
    """

    x: Tree
    y: Any
    w: Any
    n_in: int
    n_out: int
    dtype: torch.dtype
    loss: Callable[..., Tensor]
    steps: int
    validation: object = None
    scale_y: str | None = None
    form: Any = None
    module: str | nn.Module | Callable[..., nn.Module] = "lstm"
    scale_x: str | None = None
    head: nn.Module | None = None
    scores: list[int] | None = None
    labels: np.ndarray | None = None
    image: tuple[int, int, int] | None = None
    columns: ColumnSizes | None = None
    best: bool = False

    @property
    def longest(self) -> int:
        """Time steps of the longest sequence."""
        return max(map(len, self.x)) if isinstance(self.x, list) else len(self.x)

    @property
    def per_sequence(self) -> bool:
        """Whether there is one target for a whole sequence."""
        return isinstance(self.y, Tensor) and self.y.dim() == 2

    def ends_chunks(self, seqsize: int | None) -> bool:
        """Whether there is one target per sequence, and chunks hold whole sequences."""
        ragged = isinstance(self.x, list)
        return self.per_sequence and not ragged and (seqsize or self.steps) >= len(self.x)


class Start(NamedTuple):
    """How a call of ``fit`` starts."""

    form: Any
    seed: int
    why: str | None  # reason for a cold start; None: training continues
    partial: bool


class SequenceEstimator(FromArguments, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base of the scikit-learn estimators.

    Subclasses list the hyperparameters in their constructors. Their ``fit`` calls `_begin`, makes
    a `Task` from the data, and calls `_train`; then `estimator_` predicts.

    Attributes
    ----------
    estimator_
        The trained `Estimator`.
    history_
        The `History` of training, epoch by epoch.
    n_iter_
        Number of epochs trained.
    continued_
        Whether the last `fit` continued the one before.
    """

    # Stored by subclasses' constructors.
    module: str | nn.Module | Callable[..., nn.Module]
    hidden_size: int
    num_layers: int | None
    dropout: float
    optimizer: str | Callable[..., optim.Optimizer]
    lr: float | None
    weight_decay: float | None
    decay_biases: bool
    epochs: int | None
    batchsize: int
    seqsize: int | None
    shuffle: bool
    clip_norm: float | None
    clip_value: float | None
    accumulate: int
    scale_x: str | None
    callbacks: Sequence[object]
    amp: str | None
    compile: bool
    device: str | torch.device
    comm: object
    random_state: int | np.random.RandomState | None
    warm_start: bool
    verbose: int

    _seed: int
    estimator_: Estimator
    history_: History
    n_iter_: int
    continued_: bool

    # Forecasters have no such hyperparameters, nor `bidirectional` and `pool`.
    @property
    def _nan(self) -> str:
        nan: str = getattr(self, "nan", "raise")
        return nan

    @property
    def _schedule(self) -> str | None:
        schedule: str | None = getattr(self, "schedule", None)
        return schedule

    def __sklearn_clone__(self) -> Any:
        """Return a clone: all hyperparameters are copied, except `comm`, which is shared."""
        alone = copy.copy(self)
        alone.comm = None
        clone = super(SequenceEstimator, alone).__sklearn_clone__()
        clone.comm = self.comm
        return clone

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_")

    def _check_types(self) -> None:
        """Raise TypeError if a hyperparameter is no bool or number, but should be."""
        check_types(type(self), self.get_params(deep=False))

    def _begin(self, form: object, *, partial: bool = False) -> Start:
        """Decide whether to continue from what was learnt before.

        Training continues on request (``partial_fit``, ``warm_start``), if nothing has changed but
        the number of epochs, the optimizer and the rest of `_GOES_ON`.

        Parameters
        ----------
        form
            Everything about the data that the model depends on; must be as in the last call.
        partial
            Whether to train for one epoch, regardless of ``epochs``.

        Raises
        ------
        ValueError
            ``partial_fit`` cannot continue.
        """
        why = self._why_anew(form, partial=partial)
        seed = self._seed if why is None else self._draw_seed()
        return Start(form, seed, why, partial)

    def _train(self, task: Task, start: Start | None = None) -> None:
        """Train, and set the fitted attributes."""
        check_schedule(self._schedule)
        start = self._begin(task.form) if start is None else start
        if start.why is None:
            est = self.estimator_
            done = self.n_iter_
            self._update(est, task)
            if self.seqsize is None:  # sequences may be longer than before
                seqsize = self._seqsize(task, est.model)
                est.spec = dataclasses.replace(est.spec, seqsize=seqsize)
            self._say(f"continues after epoch {done}")
        else:
            est, done = self._make(task, start.seed), 0
            if hasattr(self, "estimator_"):
                self._say(f"starts from scratch: {start.why}")
        epochs = 1 if start.partial else self._all_epochs(est, task, done) - done
        if epochs > 0:
            # A schedule's last updates, at low rates, gain most: it is not cut short.
            with (
                _telling(est, each_epoch=self.verbose > 1),
                keeping_best(est, best=task.best, stop=self._schedule is None),
                scheduled(est, None if start.partial else self._schedule),
            ):
                self._fit(est, task, epochs)
            if not start.partial and len(est.history_) == done + epochs:  # else it was stopped
                warn_if_few(sum(row["updates"] for row in est.history_), len(est.history_))
        else:
            warnings.warn(
                f"nothing to do: epochs={self.epochs}, and {done} are done; with "
                "warm_start=True, epochs includes those of earlier fits",
                stacklevel=4,
            )
        self.estimator_, self.history_, self.n_iter_ = est, est.history_, len(est.history_)
        self.continued_, self._seed = start.why is None, start.seed
        self._form = start.form
        self._fitted_with: dict[str, Any] = {
            name: copy.copy(value) if isinstance(value, (dict, list)) else value
            for name, value in self.get_params(deep=False).items()
        }

    def _why_anew(self, form: object, *, partial: bool) -> str | None:
        """Return why training cannot continue from what was learnt before; None if it can."""
        if not hasattr(self, "estimator_"):
            return "it is the first fit"
        if not partial and not self.warm_start:
            return "warm_start is False"
        now, before = self.get_params(deep=False), self._fitted_with
        changed = [k for k in now if k not in _GOES_ON and not _same(now[k], before[k])]
        why = None
        if form != self._form:
            why = "the data have other features, targets or classes"
        elif changed:
            why = f"{', '.join(changed)} changed"
        elif not partial and self.epochs is not None and self.epochs < (before["epochs"] or 0):
            why = f"epochs went down from {before['epochs']} to {self.epochs}"
        if partial and why is not None:
            raise ValueError(f"partial_fit cannot continue: {why}; call fit")
        return why

    def _all_epochs(self, est: Estimator, task: Task, done: int) -> int:
        """Return how many epochs there are in all, of which some are done."""
        if self.epochs is not None:
            return self.epochs
        return done + enough_epochs(self._updates(est, task))

    def _updates(self, est: Estimator, task: Task) -> int:
        """Return how many updates an epoch has."""
        lengths = None  # as `Sequences` sorts them
        if isinstance(task.x, list):
            lengths = np.sort([len(one) for one in task.x])[::-1]
        plan = ChunkPlan(
            steps=len(task.x) if lengths is None else int(lengths[0]),
            sequences=task.x.shape[1] if lengths is None else len(lengths),
            batchsize=est.spec.batchsize, seqsize=est.spec.seqsize,
            size=communicator(self.comm).size,
            lengths=lengths, joined=bool(batch_norms(est.model)),
        )  # fmt: skip
        if est.spec.shuffle:
            plan = plan.with_room(spread_for(est.model))
        return -(-len(plan) // est.spec.accumulate)

    def _make(self, task: Task, seed: int) -> Estimator:
        """Make the `Estimator`."""
        model = self._make_model(task, seed).to(task.dtype)
        spec = self._spec(task, model)
        est = self._estimator(
            model,
            self._loss_of(task, model),
            task.module,
            spec,
            seed,
        )
        if task.scale_x is not None or task.scale_y is not None:
            # Before scaling by sequence in a way that a few large ones do not move.
            first = "robust" if task.scale_x in _BY_INSTANCE else task.scale_x
            y = task.y.unsqueeze(0) if task.per_sequence else task.y
            est.scaling_ = Scaling(
                _measure_inputs(task, first, self._nan),
                _measure("y", y, task.w, task.scale_y, task.dtype, self._nan),
            )
        return est

    def _spec(self, task: Task, model: nn.Module) -> Spec:
        try:
            return Spec(
                epochs=1 if self.epochs is None else self.epochs,
                batchsize=self.batchsize,
                seqsize=self._seqsize(task, model),
                shuffle=self.shuffle and isinstance(task.x, list),  # else samples are shuffled
                clip_norm=self.clip_norm,
                clip_value=self.clip_value,
                accumulate=self.accumulate,
                nan=self._nan,
            )
        except (ValueError, TypeError) as error:  # of hyperparameters, whatever they go into
            raise type(error)(str(error).removeprefix("spec.")) from None

    def _estimator(
        self, model: nn.Module, loss: Callable[..., Tensor], module: object, spec: Spec, seed: int
    ) -> Estimator:
        """Return an estimator for a model that the hyperparameter `module` has made."""
        return Estimator(
            model,
            loss,
            self._make_optimizer(model, module),
            spec,
            device=self.device,
            comm=self.comm,
            callbacks=self._own_callbacks(seed),
            amp=self.amp,
            compile=self.compile,
            seed=seed,
            progress=self.verbose == 1,
        )

    def _seqsize(self, task: Task, model: nn.Module) -> int:
        if self.seqsize is not None:
            return self.seqsize
        if carries(model) or steps_apart(model):
            return task.steps
        return task.longest  # the model may look at any other step, so series are not cut

    def _loss_of(self, task: Task, model: nn.Module) -> Callable[..., Tensor]:
        loss = task.loss
        if self._at_last_step(task):
            loss = AtLastStep(loss)
        elif task.per_sequence:
            loss = PerSequence(loss)
        return EachMember(loss) if any(isinstance(m, Averaged) for m in model.modules()) else loss

    def _sizes_of(self, task: Task) -> Sizes:
        return Sizes(
            self.hidden_size, self.num_layers, self.dropout, getattr(self, "bidirectional", False),
            self._pool_of(task), per_step=not task.per_sequence, instance=self._instance(task),
            steps=task.longest, image=task.image, columns=task.columns, scores=task.scores,
        )  # fmt: skip

    def _make_model(self, task: Task, seed: int) -> nn.Module:
        sizes = self._sizes_of(task)
        made = make_module(task.module, task.n_in, task.n_out, sizes, seed=seed)
        return made if task.head is None else Chain(made, task.head)

    def _pool_of(self, task: Task) -> str | None:  # noqa: ARG002
        """Return how outputs at steps are summarised; None: as the module does."""
        pool: str | None = getattr(self, "pool", None)
        return pool

    def _instance(self, task: Task) -> str | None:
        """Return `scale_x` if it scales each sequence by itself."""
        if task.scale_x not in _BY_INSTANCE:
            if task.scale_x not in _SCALINGS:
                names = (*_SCALINGS[:-1], *_BY_INSTANCE)
                raise ValueError(
                    f"scale_x must be one of {names} or None, got {task.scale_x!r}"
                    f"{meant(task.scale_x, names)}"
                )
            return None
        why = None
        if not task.per_sequence:
            why = "one target per sequence, but y has them per step"
        elif self._nan != "raise":
            why = f"sequences without missing values, but nan is {self._nan!r}"
        elif task.longest < 2:
            why = "sequences of several steps, but the module gets one step each"
        elif self.seqsize is not None and self.seqsize < task.longest:
            why = f"whole sequences, but seqsize is {self.seqsize} and T {task.longest}"
        if why is not None:
            raise ValueError(f"scale_x={task.scale_x!r} needs {why}: use 'standard'")
        return task.scale_x

    def _make_optimizer(
        self, model: nn.Module, module: object = None
    ) -> Callable[..., optim.Optimizer]:
        return optimizer_factory(
            self.optimizer, model,
            lr=self._rate(module), weight_decay=self.weight_decay, decay_biases=self.decay_biases,
        )  # fmt: skip

    def _rate(self, module: object) -> float:
        """Return the learning rate of what the hyperparameter `module` says."""
        if self.lr is not None:
            if not 0 <= self.lr < np.inf:
                raise ValueError(f"lr must be finite and not negative, or None, got {self.lr!r}")
            return self.lr
        return learning_rate(module, scheduled=self._schedule is not None)

    def _own_callbacks(self, seed: int) -> list[Any]:
        """Return copies: folds and cold starts share no state, and parameters stay unchanged."""
        given = check_callbacks(self.callbacks)
        own = [copy.deepcopy(c) if isinstance(c, Callback) else c for c in given]
        return [Shuffler(seed), *own]

    def _draw_seed(self) -> int:
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        return Replicas(communicator(self.comm)).same_number(seed)

    def _update(self, est: Estimator, task: Task) -> None:
        """Apply the current hyperparameters to an estimator that continues."""
        before = self._fitted_with
        changed = {name for name in _OPTIMIZER if not _same(getattr(self, name), before[name])}
        # If biases do not decay, or layers have their own weight decay, groups differ in it.
        alike = self.decay_biases and None not in (self.weight_decay, before["weight_decay"])
        renewing = {"optimizer", "decay_biases", *(() if alike else ("weight_decay",))}
        if changed & renewing:
            parameters = [p for p in est.model.parameters() if p.requires_grad]
            est.optimizer = self._make_optimizer(est.model, task.module)(parameters)
        else:
            for name in changed:
                value = self._rate(task.module) if name == "lr" else getattr(self, name)
                for group in est.optimizer.param_groups:
                    group[name] = value
        if not _same(self.callbacks, before["callbacks"]):
            est.callbacks = self._own_callbacks(self._seed)
        est.progress = self.verbose == 1

    def _fit(self, est: Estimator, task: Task, epochs: int) -> None:
        """Train; if `shuffle` is set, in a new order of samples each epoch."""
        with self._arranged(est, task) as (x, y, w, validation, _):
            est.fit(x, y, w, validation=validation, epochs=epochs)

    @contextmanager
    def _arranged(
        self, est: Estimator, task: Task
    ) -> Iterator[tuple[Any, Any, Any, Any, Shuffler]]:
        """Yield data as `Estimator.fit` takes them, and the callback that puts them in order."""
        x, validation = task.x, task.validation
        if task.per_sequence and self._nan == "mask":
            affine = None if est.scaling_ is None else est.scaling_.x
            x = fill_known(x, affine)
            if isinstance(validation, tuple):
                validation = fill_known(validation[0], affine), *validation[1:]
        y, w = task.y, task.w
        shuffler = next(c for c in est.callbacks if isinstance(c, Shuffler))
        if self.shuffle and not isinstance(x, list):
            x, y = shuffler.of_samples(x), shuffler.of_samples(y)
            w = None if w is None else shuffler.of_samples(w)
        w = self._weights(task, x, y, w)
        if task.per_sequence:
            y = over_steps(x, y)
            if isinstance(validation, tuple):
                x_apart, y_apart, w_apart = validation
                w_apart = self._weights(task, *validation)
                validation = x_apart, over_steps(x_apart, y_apart), w_apart
        try:
            yield x, y, w, validation, shuffler
        finally:
            shuffler.clear()

    def _weights(self, task: Task, x: Any, y: Any, w: Any) -> Any:
        """Return weights per step if only the last step of a sequence has a target."""
        if not task.per_sequence or self._at_last_step(task):
            return w
        return last_step_only(x, y, w)

    def _at_last_step(self, task: Task) -> bool:
        """Whether the loss looks only at the last steps of chunks.

        False with missing values: weights mark them, and chunks count by what is known at these
        steps.
        """
        return task.ends_chunks(self.seqsize) and self._nan == "raise"

    def _say(self, text: str) -> None:
        if communicator(self.comm).rank == 0:
            _LOG.info("%s %s", type(self).__name__, text)
            if self.verbose:
                print(f"{type(self).__name__} {text}")


@contextmanager
def _telling(est: Estimator, *, each_epoch: bool) -> Iterator[None]:
    """Let an estimator print a line for each epoch, or not."""
    own = est.callbacks
    if each_epoch:
        est.callbacks = [*own, Log()]
    try:
        yield
    finally:
        est.callbacks = own


def _same(a: object, b: object) -> bool:
    """Whether a hyperparameter is unchanged."""
    if a is b:
        return True
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return type(a) is type(b) and bool(a == b)
    except (ValueError, TypeError):
        return False


def _measure_inputs(task: Task, method: str | None, nan: str) -> Affine | None:
    """Measure the scaling of inputs; of images by channel, alike for all pixels."""
    if task.image is None:
        found = _measure("x", task.x, task.w, method, task.dtype, nan)
        if found is None or task.columns is None:
            return found
        return found.only(torch.from_numpy(task.columns.numbers))
    width, height, channels = task.image
    pixels = task.x.like(steps=(width * height, channels))
    found = _measure("x", pixels, task.w, method, task.dtype, nan)
    if found is None:
        return None
    each = [part.repeat(width * height) for part in (found.center, found.scale)]
    return dataclasses.replace(found, center=each[0], scale=each[1])


def _measure(
    name: str, array: Any, w: Any, method: str | None, dtype: torch.dtype, nan: str
) -> Affine | None:
    """Measure the scaling of an array named x or y; values without weight do not count."""
    if method is None:
        return None
    data = Sequences(array, array if name == "y" else None, w, dtype=dtype, nan=nan)
    together = 1024 if not isinstance(array, SamplesFirst) else min(1024, array.window)
    plan = ChunkPlan(
        steps=data.steps, sequences=data.count, batchsize=together, seqsize=256,
        lengths=data.lengths,
    )  # fmt: skip
    alone = Replicas(communicator(None))
    methods = (method, None) if name == "x" else (None, method)
    scaling = Scaling.measure(data, plan.chunks(), methods, alone)
    found: Affine | None = getattr(scaling, name)
    return found
