"""`Estimator`: a model, a loss and an optimizer, with `fit` and `predict`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ._util.tree import Tree, tree_map
from .checkpoint.estimator_files import (
    NoOptimizer,
    SavedLearner,
    check_parts,
    no_loss,
    restoring,
    save_learner,
)
from .checkpoint.session import Session
from .checkpoint.settings import Checkpoint
from .data.scaling.inputs_and_targets import Scaling
from .data.sequences import Sequences, to_device
from .distributed import communicator
from .distributed.replicas import Replicas
from .inference import Predictor
from .inference.export import check_path, export_model
from .nn.compiled import CompiledStateful
from .nn.earlier_steps import in_context
from .nn.model_summary import ModelSummary, summarize
from .nn.stateful import Stateful, in_mode
from .training.amp import Precision
from .training.argument_checks import (
    check_features,
    check_loss,
    choose_device,
    use_device,
)
from .training.evaluation import chunk_plan, evaluate
from .training.fit import Fit
from .training.history import History
from .training.learner import Learner
from .training.learner_table import html_table, learner_table, text_table
from .training.learning_rate_finder import LearningRateTest, restored, try_learning_rates
from .training.run import check_callbacks
from .training.spec import Spec, check_count
from .training.time_dependence import check_steps, wants_whole_series
from .training.trained_parameters import Trained

__all__ = ["Estimator", "learner_of"]


E = TypeVar("E", bound="Estimator")
T = TypeVar("T")


class _Part(Generic[T]):
    """An attribute of an estimator that its learner holds."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, est: Estimator, _: type | None = None) -> T:
        value: T = getattr(learner_of(est), self._name)
        return value

    def __set__(self, est: Estimator, value: T) -> None:
        setattr(learner_of(est), self._name, value)


class Estimator:
    """Trains a sequence model by truncated back-propagation through time, and predicts with it.

    Data are time-major: ``(T, N, F)`` is T time steps of N sequences with F features. `fit` goes
    through them block by block (``spec.batchsize`` sequences), each block chunk by chunk
    (``spec.seqsize`` steps) in time order. The state is carried from chunk to chunk of a block,
    detached from its gradient, and reset at the start of each block. Only the current chunk is
    read, and the next one ahead. Models without state whose outputs depend on other time steps
    train on whole series, or with ``spec.context`` earlier steps; if their ``forward`` has no
    parameter ``lengths``, sequences of different lengths run separately. If a model has BatchNorm
    layers, a last block of one sequence per rank is joined to the one before.

    Under ``mpirun`` every rank trains on its part of each block, and gradients are averaged over
    all samples of all ranks: w ranks with ``batchsize`` B do the same as one process with w·B.

    Parameters
    ----------
    model
        Any `torch.nn.Module` with ``forward(x)`` or ``forward(x, state) -> (y, state)``, bare
        `torch.nn.LSTM`, `GRU`, `RNN`, or a `fastseq.nn.Chain`. It is trained in place. One with an
        attribute ``num_embeddings``, such as a `Chain` that starts with `torch.nn.Embedding`,
        looks up so many ids, from 0 on: integers of x stay integers, exactly, and others raise.
    loss
        ``loss(m, xs, ys)``, with weights or a mask ``loss(m, xs, ys, ws)``, for chunks
        ``(S, B, …)``; `m` is the model with its state (`Stateful`). Returns the (weighted) mean
        over the chunk's samples. Weights are ``(S, B)``, or ``(S, B, K)`` where targets are
        missing, see `Spec`. `seqloss` makes such a loss from an ordinary one.
    optimizer
        A `torch.optim.Optimizer` over the model's parameters, or a callable that gets the
        parameters and returns one.
    spec
        A `Spec`, a dict, or an object with the fields of `Spec`.
    device
        Where to compute; ``"auto"``: a GPU if there is one. The model is moved there.
    comm
        The ranks that work together: ``"auto"`` (all that the launcher started), None (this
        process alone), a `Communicator` or an mpi4py communicator.
    callbacks
        Called during `fit`: objects like `callbacks.Callback`, or functions ``function(run)``,
        called at the end of each epoch.
    amp
        Mixed precision in training: None, ``"bf16"``, or ``"fp16"`` with scaled gradients.
        Losses after an epoch and predictions are computed in the model's dtype. With ``"bf16"``,
        models whose updates run in C++ (`info` tells) round the factors of products, in recurrent
        layers of 32 units and more and in linear layers with at least 32 inputs and outputs, where
        the processor has instructions for that (AVX-512 BF16). Sums and everything else stay in
        single precision, on other processors all. Other models run under PyTorch's autocast.
    compile
        On the CPU, run model and loss through `torch.compile`, as one graph each for training,
        evaluation and prediction; the first chunks then take seconds. It helps models of many small
        operations, not a recurrent layer alone. On a GPU, capture updates in CUDA graphs, one for
        each shape of chunks, and replay them: Python code of model, loss and hooks runs in the
        first updates only. Chunks in which sequences end run without graphs, except with a loss
        that `seqloss` made and a model of which only layers of `fastseq.nn` on kernels for GPUs
        take lengths. With ``amp="fp16"``, only fused optimizers are captured. That part has not
        yet run on a GPU.
    seed
        Makes the order of blocks and dropout repeatable. None: a random seed (rank 0's).
    progress
        Show a progress bar on rank 0.

    Attributes
    ----------
    history_
        The `History` of training.
    scaling_
        How inputs and targets are scaled: a `Scaling`; None: not scaled, or not measured yet.
    padding_
        The fraction of steps in the last epoch of `fit` that are beyond the ends of sequences.
    stop_reason_
        Why the last `fit` ended before its last epoch; None: it did not.

    Raises
    ------
    ValueError, TypeError
        A parameter is invalid; the message shows it, and says what to do.

    Examples
    --------
    >>> import fastseq as fs
    >>> from torch.nn.functional import mse_loss
    >>> x = torch.randn(100, 8, 3)
    >>> y = x.mean(2, keepdim=True)
    >>> model = fs.nn.Chain(nn.LSTM(3, 4), nn.Linear(4, 1))
    >>> spec = dict(epochs=2, batchsize=4, seqsize=10)
    >>> est = fs.Estimator(model, fs.seqloss(mse_loss), torch.optim.AdamW, spec, progress=False)
    >>> est.fit(x, y).predict(x).shape
    (100, 8, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer | Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        spec: object,
        *,
        device: str | torch.device = "auto",
        comm: object = "auto",
        callbacks: Iterable[object] = (),
        amp: str | None = None,
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        _check_model(model)
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be True or False, got {compile!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, got {seed!r}")
        check_loss(loss)
        replicas = Replicas(communicator(comm))
        place = choose_device(device, replicas.comm.local_rank)
        use_device(place, alone=replicas.alone)
        self._learner: Learner = Learner(
            model=model.to(place),
            loss=loss,
            trained=Trained(optimizer, model),
            spec=Spec.of(spec),
            device=place,
            replicas=replicas,
            precision=Precision(amp, place),
            compiles=compile,
            seed=seed,
        )
        self._predictor = _predictor(self._learner)
        self.callbacks: list[Any] = _check_callbacks(callbacks)
        self.progress = progress

    optimizer: _Part[torch.optim.Optimizer] = _Part("optimizer")
    history_: _Part[History] = _Part("history")
    scaling_: _Part[Scaling | None] = _Part("scaling")
    padding_: _Part[float] = _Part("padding")
    stop_reason_: _Part[str | None] = _Part("stop_reason")

    def __repr__(self) -> str:
        return text_table(type(self).__name__, learner_table(self._learner))

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, learner_table(self._learner))

    @property
    def model(self) -> nn.Module:  # noqa: D102 (as are those below: see Parameters)
        return self._learner.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        _check_model(model)
        self._change(model=model.to(self.device))

    @property
    def loss(self) -> Callable[..., Tensor]:  # noqa: D102
        return self._learner.loss

    @loss.setter
    def loss(self, loss: Callable[..., Tensor]) -> None:
        check_loss(loss)
        self._change(loss=loss)

    @property
    def spec(self) -> Spec:  # noqa: D102
        return self._learner.spec

    @spec.setter
    def spec(self, spec: object) -> None:
        self._change(spec=Spec.of(spec))

    @property
    def device(self) -> torch.device:  # noqa: D102
        return self._learner.device

    @property
    def amp(self) -> str | None:  # noqa: D102
        return self._learner.precision.amp

    @property
    def seed(self) -> int | None:  # noqa: D102
        return self._learner.seed

    def fit(
        self,
        x: object,
        y: object = None,
        w: object = None,
        *,
        mask: object = None,
        lengths: object = None,
        validation: object = None,
        epochs: int | None = None,
        checkpoint: object = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> Estimator:
        """Train for some epochs, starting from the current weights.

        Parameters
        ----------
        x
            Inputs ``(T, N, F)``: array, tensor, memory map, HDF5 dataset, anything with ``shape``,
            ``dtype`` and slicing; or a tuple or dict of them, which is passed to the model as such.
            In a tuple or dict, inputs ``(N, F)`` go with every step, inputs ``(T, F)`` with every
            sequence. Sequences of different lengths: a list of ``(T_i, F)``, an `h5py.Group` of
            such datasets, a `LongTable`, or a `torch.utils.data.Dataset` of ``(x_i, y_i)``; they
            are sorted by length. Groups and tables passed together must have the same names or
            ids, in the same order; lists go by position. Integers and booleans are converted to the
            model's dtype, if that cannot round them, unless the model looks ids up.
        y
            Targets ``(T, N, K)``, of the same types as `x`, or ``(T, N)`` for K = 1; integers stay
            integers.
        w
            Weights of samples, ``(N,)``, ``(T, N)`` or ``(T, N, 1)``, not negative.
        mask
            Which samples count, ``(T, N)`` or ``(T, N, 1)``; the others add nothing to loss and
            gradient, and the model gets 0 in their place.
        lengths
            Each sequence's number of steps, ``(N,)``; later steps do not count.
        validation
            Data for the loss after each epoch: other data, ``(x, y)``, ``(x, y, w)`` or a
            `torch.utils.data.Dataset`; or a part of these data, which is not trained on: the last
            sequences (``0.2``: a fifth; ``12``: that many), or the last steps of all sequences
            (``{"time": 0.2}``, ``{"time": 500}``). Last steps continue from the states at the end
            of the training part in this epoch, or from the end of a warm-up (``{"time": 500,
            "warmup": 50}``).
        epochs
            Instead of ``spec.epochs``.
        checkpoint
            A folder, or a `callbacks.Checkpoint`, for saving the run: at the end of each epoch, or
            as often as the `Checkpoint` says; and at SIGUSR1, or at SIGTERM, after which the
            program ends.
        resume
            ``"auto"``: continue the run whose newest checkpoint is in that folder, if there is
            one, up to its last epoch; or a path: continue from another folder's newest checkpoint,
            or from a file. Results are the same as without interruption, bit for bit; a warning
            says why if not.

        Returns
        -------
        Estimator
            This one.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, or nothing in them counts; then nothing has been changed.
        NonFiniteError
            The data hold NaN or infinities (see ``spec.nan``), or the loss became NaN or infinite:
            then it is a `DivergedError`.
        ReadError
            A file could not be read; the message names it, and the slice.
        CheckpointError
            `resume` names no complete checkpoint, or one of another model; nothing has been
            changed.
        OSError
            A checkpoint cannot be written; the folder is tested before training.
        BusyError
            Another thread trains the model, or another run writes to the folder of `checkpoint`.
        RemoteError
            Another rank failed; the message is that rank's.
        """
        learner = self._learner
        count = self.spec.epochs if epochs is None else epochs
        with learner.replicas.together("fit"), in_mode(self.model, training=True):
            check_count("epochs", count)
            _check_gradients("fit")
            data = self._open("fit", x, y, w, mask, lengths)
            fit = Fit(learner, data, validation, self, self.callbacks, progress=self.progress)
            session = Session(learner, self.callbacks, checkpoint, resume, shown=self.progress)
            with closing(session) as checkpoints:
                fit.run(count, checkpoints)
        return self

    def partial_fit(
        self,
        x: object,
        y: object = None,
        w: object = None,
        *,
        mask: object = None,
        lengths: object = None,
    ) -> Estimator:
        """Train for one epoch, starting from the current weights; see `fit`.

        Parameters
        ----------
        x, y, w, mask, lengths
            Training data, as in `fit`.

        Returns
        -------
        Estimator
            This one.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, or nothing in them counts; then nothing has been changed.
        NonFiniteError, ReadError, RemoteError, BusyError
            As in `fit`.
        """
        return self.fit(x, y, w, mask=mask, lengths=lengths, epochs=1)

    def find_lr(
        self,
        x: object,
        y: object = None,
        w: object = None,
        *,
        mask: object = None,
        lengths: object = None,
        least: float = 1e-6,
        most: float = 1.0,
        updates: int = 100,
    ) -> LearningRateTest:
        """Test learning rates: train while the rate rises with each update, and undo it all.

        Smith's range test: the rate rises by the same factor from update to update, until the loss
        is far above its lowest. Without callbacks; afterwards the estimator and the random
        generators are as before, also if it fails or is interrupted. If the optimizer's groups of
        parameters have different rates, they keep their ratios, and the highest is the one tested.

        Parameters
        ----------
        x, y, w, mask, lengths
            Training data, as in `fit`.
        least, most
            The first and the last rate.
        updates
            The number of updates of the weights, 10 at least.

        Returns
        -------
        LearningRateTest
            ``rates`` and ``losses`` of the updates; ``suggestion``, the rate at which the loss
            falls fastest, or None; and ``plot()``.

        Raises
        ------
        ValueError, TypeError
            The data, the range or `updates` are invalid.
        NonFiniteError
            The data hold NaN or infinities (see ``spec.nan``), or the loss does from the start.
        ReadError, RemoteError, BusyError
            As in `fit`.

        Examples
        --------
        >>> import fastseq as fs
        >>> x = torch.randn(20, 8, 1)
        >>> spec = dict(epochs=2, batchsize=4, seqsize=10)
        >>> loss, sgd = fs.seqloss(nn.MSELoss()), torch.optim.SGD
        >>> est = fs.Estimator(nn.Linear(1, 1), loss, sgd, spec, progress=False)
        >>> found = est.find_lr(x, 3 * x, most=0.5)
        >>> len(found.rates), bool(0.001 < found.suggestion < 0.5)
        (100, True)
        """
        learner = self._learner
        with learner.replicas.together("find_lr"), in_mode(self.model, training=True):
            _check_gradients("find_lr")
            with restored(learner):
                data = self._open("find_lr", x, y, w, mask, lengths)
                return try_learning_rates(learner, data, least=least, most=most, updates=updates)

    def summary(self, x: object = None) -> ModelSummary:
        """Describe the model: its layers, the shapes of their outputs, and their parameters.

        Parameters
        ----------
        x
            Inputs as for `predict`; only their structure, features and number of steps matter.
            None: like the last ones; without any, shapes are unknown.

        Returns
        -------
        ModelSummary
            A table, shown as text, or in a notebook as HTML.

        Raises
        ------
        ValueError, TypeError
            `x` is invalid.

        Examples
        --------
        >>> import fastseq as fs
        >>> model = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 2))
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(model, fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec, device="cpu")
        >>> est.summary(torch.zeros(50, 8, 3))
        Chain: 118 parameters, float32 on cpu
        layer  type    output     parameters
               Chain   (T, N, 2)           0
        0      GRU     (T, N, 4)         108
        1      Linear  (T, N, 2)          10
        """
        learner = self._learner
        if x is not None:
            with learner.replicas.together("summary"):
                learner.open(x)
        return summarize(learner.model, learner.example, learner.steps)

    def predict(
        self, x: object, *, lengths: object = None, out: object = None, reset: bool = True
    ) -> Tree:
        """Run the model over whole series, in evaluation mode, without gradients.

        Before `fit` it runs the model with the weights that it came with, trained or random.
        The result does not depend on ``batchsize`` and ``seqsize``, beyond rounding. A model whose
        outputs depend on other time steps beyond its state, such as attention or a convolution
        without ``spec.context``, runs on whole series at once, which takes memory. With several
        ranks each runs some of the sequences, and all return all outputs; with
        ``spec.shard="given"`` each runs and returns its own.

        Parameters
        ----------
        x, lengths
            Inputs ``(T, N, F)``, as in `fit`. Outputs beyond a sequence's end are NaN.
        out
            Where to write: an array, memory map, tensor or HDF5 dataset ``(T, N, K)``, or a tuple
            or dict of them, as the model returns; for sequences of different lengths lists, or
            groups of datasets. None: new arrays. With several ranks, all ranks write files in which
            the dataset is contiguous; rank 0 writes other files.
        reset
            Start with a fresh state; False: continue from the end of the last `predict` or `step`.

        Returns
        -------
        numpy.ndarray, or `out`
            Outputs ``(T, N, K)``, in the model's structure; ``(T, N)`` if `fit` got such targets;
            a list of ``(T_i, K)`` if `x` is a list. In the model's dtype; if ``spec.scale_y``
            scaled the targets, in single precision at least, and in double precision if the targets
            held more (`out` may still have the model's dtype).

        Raises
        ------
        ValueError, TypeError
            `x` or `out` are invalid; then nothing has been written.
        NonFiniteError
            `x` holds NaN or infinities; see ``spec.nan``.
        ReadError, RemoteError, BusyError
            As in `fit`.

        Examples
        --------
        >>> import fastseq as fs
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.progress = False
        >>> x = torch.zeros(50, 8, 3)
        >>> whole = est.predict(x)
        >>> first, rest = est.predict(x[:30]), est.predict(x[30:], reset=False)
        >>> whole.shape, first.shape, rest.shape, bool(abs(whole[30:] - rest).max() < 1e-6)
        ((50, 8, 2), (30, 8, 2), (20, 8, 2), True)
        """
        learner = self._learner
        with learner.replicas.together("predict"), in_mode(self.model, training=False):
            # What any rank writes may go into a file that is read.
            strict = learner.replicas.in_common([out is None])[0]
            data = learner.open(x, None, None, None, lengths, strict=strict)
            learner.scale(data)
            learner.replicas.make_common(self.model)
            return self._predictor.predict(
                data, self.spec, out,
                reset=reset, squeeze=learner.squeezed, undo=learner.undo,
                progress=self.progress and learner.replicas.first,
                whole=wants_whole_series(learner, data, goes_on=not reset),
                pooled=getattr(self.loss, "per_sequence", False),
            )  # fmt: skip

    def evaluate(
        self,
        x: object,
        y: object = None,
        w: object = None,
        *,
        mask: object = None,
        lengths: object = None,
    ) -> float:
        """Return the mean loss over all samples of all ranks, in evaluation mode.

        Parameters
        ----------
        x, y, w, mask, lengths
            Data as in `fit`.

        Returns
        -------
        float
            The loss, of scaled targets if ``spec.scale_y`` scales them.

        Raises
        ------
        ValueError, TypeError
            The data are invalid, or no sample counts.
        NonFiniteError
            The data hold NaN or infinities; see ``spec.nan``.
        ReadError, RemoteError, BusyError
            As in `fit`.

        Examples
        --------
        >>> import fastseq as fs
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> model = nn.Linear(3, 1)
        >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        >>> est = fs.Estimator(model, fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.evaluate(torch.zeros(20, 8, 3), torch.ones(20, 8, 1))
        1.0
        """
        learner = self._learner
        with learner.replicas.together("evaluate"), in_mode(self.model, training=False):
            data = self._open("evaluate", x, y, w, mask, lengths)
            learner.check_compiled(data)
            learner.scale(data)
            learner.replicas.make_common(self.model)
            whole = wants_whole_series(learner, data)
            # Sharded by sequences, as parts of series would start with a fresh state.
            plan = chunk_plan(
                self.model, data, self.spec, learner.replicas, by_time=False, whole=whole
            )
            model = in_context(self.model, self.spec.context)
            return evaluate(
                model, learner.objective, data, plan.chunks(), self.device, learner.replicas
            )

    def step(self, x: object) -> Tree:
        """Run the next time step of all sequences, for series that are not complete yet.

        Continues from the end of the last `predict` or `step`. Not collective.

        Parameters
        ----------
        x
            Inputs of one step, ``(N, F)``, or a tuple or dict of them.

        Returns
        -------
        Tensor
            Outputs of the step, ``(N, K)``, on the model's device, in the model's structure.

        Raises
        ------
        ValueError
            `x` is invalid, or its scaling has not been measured yet. The state is unchanged.
        NonFiniteError
            `x` holds NaN or infinities; see ``spec.nan``.

        Examples
        --------
        >>> import fastseq as fs
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.step(torch.zeros(8, 3)).shape
        torch.Size([8, 2])
        """
        y = self._predictor.native_step(x)
        if y is not None:
            return y
        learner = self._learner
        xs = learner.step_input(x)
        check_features(self.model, xs)
        check_steps(learner, xs)
        xs = to_device(xs, self.device)
        return self._predictor.step(learner, x, xs, squeeze=learner.squeezed, undo=learner.undo)

    def export(self, path: str | os.PathLike[str], x: object = None) -> None:
        """Write the model, in evaluation mode, as a program that needs no fastseq.

        The program is ``program(x, state) -> (y, state)`` for any number of steps and sequences:
        `x` and `y` as in `predict`, but tensors; `state` a tuple of tensors, the leaves of what
        `get_state` returns. `x` has the model's dtype; inputs to be scaled are fp32 at least, and
        fp64 if the inputs of `fit` held more. Models without state, and models that look at later
        steps and so take whole series, are ``program(x) -> y``. Rank 0 writes.

        `torch.export.load` reads the file, without running code of fastseq or of the model. The
        extra file ``fastseq.json`` in it holds for each tensor of the state its ``name``,
        ``dtype``, ``batch_dim`` and, in ``start``, its value for one sequence at the start of a
        series. Recurrent layers, PyTorch's too, become fastseq's operators. They need
        ``torch.ops.load_library(library)`` first, where ``library`` is the file in
        ``fastseq.info()["kernels"]["library"]``. ``torch._inductor.aoti_compile_and_package``
        compiles such programs only if fastseq is imported; they run without it.

        A file name that ends in ``.onnx`` gives an ONNX model instead, for onnxruntime and others:
        inputs ``x``, ``state_0`` and so on, outputs ``y``, ``next_state_0`` and so on, and the
        contents of ``fastseq.json`` in the model's metadata. Recurrent layers become ONNX's, and
        the model must be in single precision.

        Parameters
        ----------
        path
            A file name that ends in ``.pt2`` or ``.onnx``.
        x
            An input as for `predict`; only its structure and features matter. None: like the last
            one.

        Raises
        ------
        ValueError
            The model cannot be exported for any number of steps and sequences; nothing is written.
        MissingFeatureError
            onnxscript is not installed, which ONNX needs.

        Examples
        --------
        >>> import fastseq as fs, json, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.pt2")
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.export(path, torch.zeros(10, 8, 3))
        >>> files = {"fastseq.json": ""}
        >>> program = torch.export.load(path, extra_files=files).module()
        >>> state = tuple(
        ...     torch.tensor(s["start"]).repeat_interleave(5, s["batch_dim"])
        ...     for s in json.loads(files["fastseq.json"])["state"]
        ... )
        >>> y, state = program(torch.zeros(20, 5, 3), state)
        >>> y.shape, state[0].shape
        (torch.Size([20, 5, 2]), torch.Size([1, 5, 2]))
        """
        learner = self._learner
        with learner.replicas.together("export"):
            target = check_path(path)
            learner.check_measured()
            learner.replicas.make_common(self.model)
            if x is not None:
                learner.open(x)
            if learner.example is None:
                raise ValueError(
                    "export needs an example x, because neither fit nor predict has been called yet"
                )
            learner.replicas.meet()
            if learner.replicas.first:
                export_model(self.model, learner.example, target, learner.scaling)

    def save(self, path: str | os.PathLike[str], *, state: bool = False) -> None:
        """Write the estimator to a file, for `load`. Every rank must call it; rank 0 writes.

        The safetensors file holds weights and buffers, spec, scaling, seed, history, and a
        description of the model if all its layers are known to fastseq. Loss, optimizer and
        callbacks are code, and left out; to continue a run of `fit`, use its checkpoints.

        Parameters
        ----------
        path
            The file. It is written completely, or left as it was.
        state
            Also save the state after the last `predict` or `step`: the next `step` of the loaded
            estimator continues from it.

        Raises
        ------
        TypeError
            State or buffers are not tensors, numbers, strings, or plain tuples, lists and dicts of
            these.
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import fastseq as fs, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> y = est.step(torch.zeros(8, 3))
        >>> est.save(path, state=True)
        >>> again = fs.Estimator.load(path)
        >>> torch.equal(again.step(torch.ones(8, 3)), est.step(torch.ones(8, 3)))
        True
        """
        replicas = self._learner.replicas
        with replicas.together("save"):
            if not isinstance(state, bool):
                raise TypeError(f"state must be True or False, got {state!r}")
            target = Path(path)
            replicas.make_common(self.model)
            replicas.meet()
            if replicas.first:
                save_learner(self._learner, target, self.get_state() if state else None)

    @classmethod
    def load(
        cls: type[E],
        path: str | os.PathLike[str],
        model: nn.Module | Callable[[], nn.Module] | None = None,
        *,
        loss: Callable[..., Tensor] | None = None,
        optimizer: (
            torch.optim.Optimizer | Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None
        ) = None,
        comm: object = "auto",
        **options: Any,
    ) -> E:
        """Make an estimator from a file that `save` wrote. All ranks read it. No code is run.

        Parameters
        ----------
        path
            The file.
        model
            A model like the saved one, or a callable that returns one; it gets the weights. None:
            build it from the file, if it consists of `nn.Chain`, `torch.nn.Sequential` and common
            layers.
        loss
            As for the constructor; `fit` and `evaluate` need it.
        optimizer
            As for the constructor; `fit` needs it. It starts without state.
        comm, **options
            Other arguments of the constructor; ``device`` and others are not in the file.

        Returns
        -------
        Estimator
            With the saved weights, spec, scaling, seed, history and, if it was saved, state.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CheckpointError
            It is damaged, not written by `save`, or of another model; the message names the first
            difference. Pickles are not opened.
        ValueError
            The file does not describe the model, and none is given.

        Examples
        --------
        See `save`.
        """
        replicas = Replicas(communicator(comm))
        with replicas.together("load"):
            saved = SavedLearner.read(Path(path), model)
            if model is None:
                with restoring(Path(path)):
                    Stateful(saved.model)  # raises if `fit` takes no such model
            est = cls(
                saved.model,
                no_loss if loss is None else loss,
                NoOptimizer if optimizer is None else optimizer,
                saved.spec,
                **{**saved.options, **options, "comm": replicas.comm},
            )
            with restoring(Path(path)):
                saved.restore(learner_of(est))
                est.set_state(saved.state)
            return est

    def get_state(self) -> Tree:
        """Return the state after the last `predict` or `step`.

        Returns
        -------
        Tensor, tuple, list, dict or None
            A copy, in the structure in which the model returns it: of a GRU
            ``(num_layers, N, hidden_size)``. None: the next `step` starts new series.
        """
        return self._predictor.get_state()

    def set_state(self, state: Tree) -> None:
        """Make `step` and ``predict(reset=False)`` continue from `state`.

        Parameters
        ----------
        state
            What `get_state` returned, or another of its structure, of which a copy is kept on the
            model's device; None: start new series.
        """
        self._predictor.state = tree_map(lambda a: a.detach().to(self.device, copy=True), state)

    def reset_state(self) -> None:
        """Make the next `step` start new series."""
        self._predictor.state = None

    def _change(self, **parts: object) -> None:
        if self._learner.change(**parts):
            self._predictor = _predictor(self._learner)

    def _open(self, caller: str, x: object, y: object, *more: object) -> Sequences:
        """Open data with targets."""
        check_parts(self._learner, caller)
        if y is None and not isinstance(x, Dataset | DataLoader):
            raise TypeError(f"{caller} needs targets y, got None")
        data = self._learner.open(x, y, *more)
        if data.y is None:
            raise TypeError(f"{caller} needs targets: items of the dataset must be (x, y)")
        return data


def learner_of(est: Estimator) -> Learner:
    """Return an estimator's model, with all that is needed to train it."""
    return est._learner


def _predictor(learner: Learner) -> Predictor:
    """Make the `Predictor` for a learner's model."""
    spec, model = learner.spec, learner.model
    compiled = learner.compiles and not learner.graphs
    stateful = CompiledStateful(model) if compiled else Stateful(in_context(model, spec.context))
    own = spec.shard == "given"  # then each rank runs only its own sequences
    sharing = Replicas(communicator(None)) if own else learner.replicas
    return Predictor(stateful, learner.device, sharing)


def _check_callbacks(callbacks: object) -> list[Any]:
    found = check_callbacks(callbacks)
    if any(isinstance(callback, Checkpoint) for callback in found):
        raise TypeError("callbacks must not include a Checkpoint: pass it to fit, as checkpoint=…")
    return found


def _check_gradients(caller: str) -> None:
    if not torch.is_grad_enabled():
        raise ValueError(
            f"{caller} needs gradients, which are disabled here: call it outside of "
            "torch.no_grad() and torch.inference_mode()"
        )


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
