"""`Estimator`: a model, a loss and an optimizer, with `fit` and `predict`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .arguments import (
    check_features,
    check_loss,
    check_place,
    choose_device,
    input_dtype,
    use_device,
)
from .compiled import CompiledStateful, compile_chunks
from .context import in_context
from .cuda_graph import GraphTrainer
from .data.fingerprint import checksums
from .data.sequences import Sequences
from .distributed import communicator
from .evaluating import chunk_plan, evaluate
from .fitting import Fit
from .history import History
from .looking import Looks, wants_whole_series
from .losses import missing_label, of_numbers
from .parallel import Replicas
from .precision import Precision
from .predicting import Predictor
from .run import check_callbacks
from .saving import check_parts
from .scaling import Scaling
from .serving import Serving
from .spec import Spec, check_count
from .stateful import Stateful, in_mode, is_bidirectional
from .trained import Trained
from .training import Trainer
from .tree import Tree, tree_map

__all__ = ["Estimator"]


class Estimator(Serving):
    """Trains a sequence model by truncated back-propagation through time, and predicts with it.

    Data are time-major: ``(T, N, F)`` is T time steps of N sequences with F features. `fit` goes
    through them block by block (``spec.batchsize`` sequences), each block chunk by chunk
    (``spec.seqsize`` steps) in time order. The state is carried from chunk to chunk of a block,
    cut off its gradient, and reset at each block's start. Only the slices of the current chunk
    are read, and the next one ahead. Models without state whose outputs depend on other time steps
    train on whole series, or with ``spec.context`` earlier steps; if they have no parameter
    ``lengths``, sequences of each length run by themselves. If a model has BatchNorm layers, a last
    block of one sequence per rank is joined to the one before.

    Under ``mpirun`` every rank trains on its part of each block, and gradients are averaged over
    all samples of all ranks: w ranks with ``batchsize`` B do what one process does with w·B.

    Parameters
    ----------
    model
        Any `torch.nn.Module` with ``forward(x)`` or ``forward(x, state) -> (y, state)``, bare
        `torch.nn.LSTM`, `GRU`, `RNN`, or a `fastseq.nn.Chain`. It is trained in place.
    loss
        ``loss(m, xs, ys)``, with weights or a mask ``loss(m, xs, ys, ws)``, for chunks
        ``(S, B, …)``; `m` is the model with its state (`Stateful`). Returns the (weighted) mean
        over the chunk's samples. Weights are ``(S, B)``, or ``(S, B, K)`` where targets are
        missing, see `Spec`. `seqloss` makes one of an ordinary loss.
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
        What `fit` calls on the way: objects as `callbacks.Callback` describes them, or functions
        ``function(run)``, called at the end of each epoch.
    amp
        Mixed precision of training steps: None, ``"bf16"``, or ``"fp16"`` with scaled gradients.
        Losses after an epoch and predictions are computed in the model's dtype.
    compile
        On the CPU, run model and loss through `torch.compile`, as one graph each for training,
        evaluation and prediction; the first chunks then take seconds. It pays for models of many
        small operations, not for a recurrent layer alone. On a GPU, capture training steps in
        CUDA graphs, one for each shape of chunks, and replay them: Python code of model, loss and
        hooks runs in the first steps only. That part has not yet run on a GPU.
    seed
        Makes runs repeatable: order of blocks and dropout. None: a random one (rank 0's).
    progress
        Show a progress bar on rank 0.

    Attributes
    ----------
    history_
        What `fit` did: a `History`.
    scaling_
        How inputs and targets are scaled: a `Scaling`; None: not, or not measured yet.
    padding_
        Which part of all steps that the last `fit` went through lies behind the ends of sequences.
    stop_reason_
        Why the last `fit` ended before its last epoch; None: it did not.

    Raises
    ------
    ValueError, TypeError
        A parameter is not what it should be; the message says what came and what to do.

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
        spec: Any,
        *,
        device: str | torch.device = "auto",
        comm: Any = "auto",
        callbacks: Iterable[Any] = (),
        amp: str | None = None,
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be True or False, got {compile!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, got {seed!r}")
        check_loss(loss)
        self.spec = Spec.of(spec)
        self._replicas = Replicas(communicator(comm))
        self.device = choose_device(device, self._replicas.comm.local_rank)
        use_device(self.device, alone=self._replicas.alone)
        self.model = model.to(self.device)
        self.loss = loss
        self._trained = Trained(optimizer, model)
        self.optimizer = self._trained.first
        self.callbacks = check_callbacks(callbacks)
        self.amp = amp
        self.seed = seed
        self.progress = progress
        self.history_ = History()
        if is_bidirectional(model):
            warnings.warn(
                "the model has a bidirectional layer, which looks at later steps: fit lets it see "
                "those of the same chunk only, predict runs whole series at once",
                stacklevel=2,
            )
        graphs = compile and self.device.type == "cuda"
        if graphs and (amp == "fp16" or self.spec.accumulate > 1):
            raise ValueError(
                'compile=True on a GPU cannot capture steps with amp="fp16" or spec.accumulate > 1'
            )
        if compile and self.spec.context:
            raise ValueError("compile=True goes without spec.context: leave one of them out")
        self._precision = Precision(amp, self.device)
        self._precision.check(model)
        self._compiles = compile
        self._trainer = GraphTrainer if graphs else Trainer
        self._loss = compile_chunks(model, loss) if compile and not graphs else loss
        runs = in_context(model, self.spec.context)
        stateful = CompiledStateful(model) if compile and not graphs else Stateful(runs)
        own = self.spec.shard == "given"  # then no rank has to do with another's sequences
        sharing = Replicas(communicator(None)) if own else self._replicas
        self._predictor = Predictor(stateful, self.device, sharing)
        self._looks: dict[tuple[Any, ...], Looks] = {}
        self._drawn_seed: int | None = seed
        self._data_key: int | None = None  # of what callbacks have judged
        self._example: Tree = None
        self._squeezed = False
        self.scaling_: Scaling | None = None
        self.padding_ = 0.0
        self.stop_reason_: str | None = None

    def fit(
        self,
        x: Any,
        y: Any = None,
        w: Any = None,
        *,
        mask: Any = None,
        lengths: Any = None,
        validation: Any = None,
        epochs: int | None = None,
        checkpoint: Any = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> Estimator:
        """Train for some epochs, from the current weights on.

        Parameters
        ----------
        x
            Inputs ``(T, N, F)``: array, tensor, memory map, HDF5 dataset, anything with ``shape``,
            ``dtype`` and slicing; or a tuple or dict of them, which the model gets as such. In a
            tuple or dict, inputs ``(N, F)`` go with every step, inputs ``(T, F)`` with every
            sequence. Sequences of different lengths: a list of ``(T_i, F)``, an `h5py.Group` of
            such datasets, or a `torch.utils.data.Dataset` of ``(x_i, y_i)``; they are visited by
            length. Integers and booleans are converted to the model's dtype.
        y
            Targets ``(T, N, K)``, likewise, or ``(T, N)`` for K = 1; integers stay integers.
        w
            Weights of samples, ``(N,)``, ``(T, N)`` or ``(T, N, 1)``, not negative.
        mask
            Which samples count, ``(T, N)`` or ``(T, N, 1)``; the others add nothing to loss and
            gradient, and the model gets 0 in their place.
        lengths
            How many steps each sequence has, ``(N,)``; those behind do not count.
        validation
            What the loss is computed on after each epoch: other data, ``(x, y)``, ``(x, y, w)`` or
            a `torch.utils.data.Dataset`, or a part of these, which is not trained on: the last
            sequences (``0.2``: a fifth; ``12``: so many), or the last steps of all
            (``{"time": 0.2}``, ``{"time": 500}``). The latter go on from the states in which the
            training part ended in this epoch, or from the end of a warm-up (``{"time": 500,
            "warmup": 50}``).
        epochs
            Instead of ``spec.epochs``.
        checkpoint
            A folder, or a `callbacks.Checkpoint`, to save the run in as it goes on: at the end of
            each epoch, or as often as that says; and when SIGUSR1 comes, or SIGTERM, after which
            the program ends.
        resume
            ``"auto"``: go on with the run whose newest checkpoint is in that folder, if there is
            one, up to the epoch that it would have ended with; or from another folder's newest, or
            a file. It then does what it would have done, bit for bit; a warning says why not.

        Returns
        -------
        Estimator
            This one.

        Raises
        ------
        ValueError, TypeError
            The data are not what they should be, or nothing in them counts; nothing has been
            changed then.
        NonFiniteError
            The data hold NaN or infinities (see ``spec.nan``), or the loss became so.
        ReadError
            A file could not be read; the message names it, and the slice.
        CheckpointError
            `resume` names no whole checkpoint, or one of another model; nothing has been changed.
        OSError
            A checkpoint cannot be written; of the folder this is known before training.
        RemoteError
            Another rank failed; the message is its.
        """
        count = self.spec.epochs if epochs is None else epochs
        with self._replicas.together("fit"), in_mode(self.model, training=True):
            check_count("epochs", count)
            if not torch.is_grad_enabled():
                raise ValueError(
                    "fit needs gradients, which are off here: call it outside of torch.no_grad() "
                    "and torch.inference_mode()"
                )
            data = self._open_both("fit", x, y, w, mask, lengths)
            Fit(self, data, validation).run(count, checkpoint, resume)
        return self

    def partial_fit(
        self, x: Any, y: Any = None, w: Any = None, *, mask: Any = None, lengths: Any = None
    ) -> Estimator:
        """Train for one epoch, from the current weights on; see `fit`."""
        return self.fit(x, y, w, mask=mask, lengths=lengths, epochs=1)

    def predict(self, x: Any, *, lengths: Any = None, out: Any = None, reset: bool = True) -> Any:
        """Run the model over whole series, in evaluation mode, without gradients.

        The result does not depend on ``batchsize`` and ``seqsize``, beyond rounding. A model whose
        outputs depend on other time steps without a state that tells of them, such as attention or
        a convolution without ``spec.context``, runs on whole series at once, which takes memory.
        With several ranks each runs some of the sequences, and all return the whole; with
        ``spec.shard="given"`` each its own.

        Parameters
        ----------
        x, lengths
            Inputs ``(T, N, F)``, as in `fit`. Outputs behind a sequence's end are NaN.
        out
            Where to write: an array, memory map, tensor or HDF5 dataset ``(T, N, K)``, or a tuple
            or dict of them, as the model returns; for sequences of different lengths lists, or
            groups of datasets. None: new arrays. With several ranks, files are written by all
            ranks if they hold the dataset in one piece, else by rank 0.
        reset
            Start with a fresh state; False: go on where the last `predict` or `step` stopped.

        Returns
        -------
        numpy.ndarray, or `out`
            Outputs ``(T, N, K)``, in the model's structure; ``(T, N)`` if `fit` got such targets;
            a list of ``(T_i, K)`` if `x` is a list. In the model's dtype; what ``spec.scale_y``
            has scaled in single precision at least, and in double precision if the targets held
            more (`out` may have the model's dtype all the same).

        Raises
        ------
        ValueError, TypeError
            `x` or `out` are not what they should be; nothing has been written then.
        """
        with self._replicas.together("predict"), in_mode(self.model, training=False):
            data = self._open(x, None, None, None, lengths)
            self._scale(data)
            self._replicas.make_common(self.model)
            return self._predictor.predict(
                data, self.spec, out,
                reset=reset, squeeze=self._squeezed, undo=self._undo,
                progress=self.progress and self._replicas.first,
                whole=wants_whole_series(self, data, goes_on=not reset),
                pooled=getattr(self.loss, "per_sequence", False),
            )  # fmt: skip

    def evaluate(
        self, x: Any, y: Any = None, w: Any = None, *, mask: Any = None, lengths: Any = None
    ) -> float:
        """Return the mean loss over all samples of all ranks, in evaluation mode; see `fit`.

        Raises
        ------
        ValueError
            Besides what `fit` says: no sample counts.
        """
        with self._replicas.together("evaluate"), in_mode(self.model, training=False):
            data = self._open_both("evaluate", x, y, w, mask, lengths)
            self._check_compiled(data)
            self._scale(data)
            self._replicas.make_common(self.model)
            whole = wants_whole_series(self, data)
            # Sharded by sequences, as parts of series would start from no state.
            plan = chunk_plan(
                self.model, data, self.spec, self._replicas, by_time=False, whole=whole
            )
            model = in_context(self.model, self.spec.context)
            return evaluate(model, self._loss, data, plan.chunks(), self.device, self._replicas)

    def _open_both(self, caller: str, x: Any, y: Any, *more: Any) -> Sequences:
        check_parts(self, caller)
        if y is None and not isinstance(x, Dataset | DataLoader):
            raise TypeError(f"{caller} needs targets y, got None")
        data = self._open(x, y, *more)
        if data.y is None:
            raise TypeError(f"{caller} needs targets: items of the dataset must be (x, y)")
        return data

    def _open(
        self, x: Any, y: Any = None, w: Any = None, mask: Any = None, lengths: Any = None
    ) -> Sequences:
        check_place(self.model, self.device)
        data = Sequences(
            x, y, w, mask, lengths, dtype=input_dtype(self.model), nan=self.spec.nan,
            labels=self.spec.scale_y is None or not of_numbers(self.loss),
            missing_label=missing_label(self.loss),
            device=self.device, strict=y is not None,  # predictions may go into the same file
        )  # fmt: skip
        check_features(self.model, data.x)
        if self.spec.shard != "given":
            self._replicas.same_data(lambda: checksums(data))
        self._example = tree_map(
            lambda s: torch.zeros(1, 1, *s.shape[2:], dtype=data.dtype, device=self.device), data.x
        )
        return data

    def _check_compiled(self, data: Sequences) -> None:
        """Raise where a compiled model cannot be told where sequences end."""
        told = Stateful(self.model).told_ends and not is_bidirectional(self.model)
        if self._compiles and data.lengths is not None and not told:
            raise ValueError(
                "compile=True cannot tell what looks at later steps where sequences end: pass "
                "sequences of one length, or compile=False"
            )

    def _current_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of what the model trains now."""
        self.optimizer = self._trained.follow(self.optimizer)
        return self.optimizer

    def _scale(self, data: Sequences) -> None:
        """Scale data as those of `fit` were."""
        self._check_measured()
        if self.scaling_ is not None:
            data.scaled(self.scaling_.x, self.scaling_.y if data.y is not None else None)
