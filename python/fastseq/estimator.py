"""`Estimator`: a model, a loss and an optimizer, with `fit` and `predict`."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import choose_device, input_dtype, make_optimizer, step_input
from .compiled import CompiledStateful, compile_chunks
from .cuda_graph import GraphTrainer
from .data.chunks import ChunkPlan
from .data.sequences import Sequences
from .distributed import communicator
from .export import check_path, export_model
from .history import History
from .parallel import Replicas
from .prediction import Predictor
from .progress import Progress
from .spec import Spec, check_count
from .stateful import Stateful, in_mode, is_bidirectional
from .training import Trainer, evaluate, to_device
from .tree import Tree, tree_map

__all__ = ["Estimator"]


class Estimator:
    """Trains a sequence model by truncated back-propagation through time, and predicts with it.

    Data are time-major: ``(T, N, F)`` is T time steps of N sequences with F features. `fit` goes
    through them block by block (``spec.batchsize`` sequences), each block chunk by chunk
    (``spec.seqsize`` steps) in time order. The state is carried from chunk to chunk of a block,
    cut off its gradient, and reset at each block's start. Only the slices of the current chunk
    are read, and the next one ahead.

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
        over the chunk's samples. `seqloss` makes one of an ordinary loss.
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
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be callable as loss(m, xs, ys), got {loss!r}")
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be True or False, got {compile!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, got {seed!r}")
        self.spec = Spec.of(spec)
        self._replicas = Replicas(communicator(comm))
        self.device = choose_device(device, self._replicas.comm.local_rank)
        self.model = model.to(self.device)
        self.loss = loss
        self.optimizer = make_optimizer(optimizer, model)
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
        self._trainer = GraphTrainer if graphs else Trainer
        self._loss = compile_chunks(model, loss) if compile and not graphs else loss
        stateful = CompiledStateful(model) if compile and not graphs else Stateful(model)
        self._predictor = Predictor(stateful, self.device, self._replicas)
        self._drawn_seed: int | None = seed
        self._example: Tree = None

    def fit(
        self, x: Any, y: Any, w: Any = None, *, mask: Any = None, epochs: int | None = None
    ) -> Estimator:
        """Train for some epochs, from the current weights on.

        Parameters
        ----------
        x
            Inputs ``(T, N, F)``: array, tensor, memory map, HDF5 dataset, anything with ``shape``,
            ``dtype`` and slicing; or a tuple or dict of them, which the model gets as such.
            Integers and booleans are converted to the model's dtype.
        y
            Targets ``(T, N, K)``, likewise; integers stay integers.
        w
            Weights of samples, ``(N,)``, ``(T, N)`` or ``(T, N, 1)``, not negative.
        mask
            Which samples count, ``(T, N)`` or ``(T, N, 1)``; the others add nothing to loss and
            gradient, and the model gets 0 in their place.
        epochs
            Instead of ``spec.epochs``.

        Returns
        -------
        Estimator
            This one.

        Raises
        ------
        ValueError, TypeError
            The data are not what they should be; nothing has been changed then.
        NonFiniteError
            The loss became NaN or infinite.
        RemoteError
            Another rank failed; the message is its.
        """
        count = self.spec.epochs if epochs is None else epochs
        with self._replicas.together():
            check_count("epochs", count)
            if y is None:
                raise TypeError("fit needs targets y, got None")
            data = self._open(x, y, w, mask)
            self._agree(data, count)
            plan = self._plan(data)
            trainer = self._trainer(
                self.model, self._loss, self.optimizer, self.spec, self.device, self._replicas
            )
            shown = self.progress and self._replicas.first
            bar = Progress(count * len(plan), shown=shown)
            with trainer, in_mode(self.model, training=True), bar as progress:
                for _ in range(count):
                    self._run_epoch(trainer, data, plan, progress)
        return self

    def partial_fit(self, x: Any, y: Any, w: Any = None, *, mask: Any = None) -> Estimator:
        """Train for one epoch, from the current weights on; see `fit`."""
        return self.fit(x, y, w, mask=mask, epochs=1)

    def predict(self, x: Any, *, out: Any = None, reset: bool = True) -> Any:
        """Run the model over whole series, in evaluation mode, without gradients.

        The result does not depend on ``batchsize`` and ``seqsize``, beyond rounding. With several
        ranks each runs some of the sequences, and all return the whole.

        Parameters
        ----------
        x
            Inputs ``(T, N, F)``, as in `fit`.
        out
            Where to write: an array, memory map, tensor or HDF5 dataset ``(T, N, K)``, or a tuple
            or dict of them, as the model returns. None: new arrays.
        reset
            Start with a fresh state; False: go on where the last `predict` or `step` stopped.

        Returns
        -------
        numpy.ndarray, or `out`
            Outputs ``(T, N, K)``, in the model's structure.

        Raises
        ------
        ValueError, TypeError
            `x` or `out` are not what they should be; nothing has been written then.
        """
        with self._replicas.together():
            data = self._open(x)
            if reset:
                self.reset_state()
            return self._predictor.predict(data, self.spec, out)

    def step(self, x: Any) -> Tree:
        """Predict the next time step of all sequences: for series that are still going on.

        Goes on where the last `predict` or `step` stopped. No rank talks to another.

        Parameters
        ----------
        x
            Inputs of one step, ``(N, F)``, or a tuple or dict of them.

        Returns
        -------
        Tensor
            Outputs of the step, ``(N, K)``, on the model's device, in the model's structure.

        Examples
        --------
        >>> import fastseq as fs
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.step(torch.zeros(8, 3)).shape
        torch.Size([8, 2])
        """
        xs = step_input(x, input_dtype(self.model))
        return self._predictor.step(to_device(xs, self.device))

    def evaluate(self, x: Any, y: Any, w: Any = None, *, mask: Any = None) -> float:
        """Return the mean loss over all samples of all ranks, in evaluation mode; see `fit`."""
        with self._replicas.together():
            data = self._open(x, y, w, mask)
            chunks = self._plan(data).chunks()
            with in_mode(self.model, training=False):
                return evaluate(self.model, self._loss, data, chunks, self.device, self._replicas)

    def export(self, path: str | os.PathLike[str], x: Any = None) -> None:
        """Write the model, in evaluation mode, as a `torch.export` program that needs no fastseq.

        The program is ``program(x, state) -> (y, state)`` for any number of steps and sequences:
        `x` and `y` as in `predict`, but tensors, `state` a tuple of tensors, the leaves of what
        `get_state` returns. Models without state, and models that look at later steps and so take
        whole series, are ``program(x) -> y``. Rank 0 writes.

        `torch.export.load` reads the file; that runs nothing of fastseq or of the model's code.
        The extra file ``fastseq.json`` in it tells for each tensor of the state its ``name``,
        ``dtype``, ``batch_dim`` and, in ``start``, its value for one sequence at the start of a
        series. Recurrent layers, PyTorch's too, become operators of fastseq's, which need
        ``torch.ops.load_library(library)`` first, where ``library`` is the file that
        ``fastseq.info()["kernels"]["library"]`` names. ``torch._inductor.aoti_compile_and_package``
        compiles such programs where fastseq is imported; they run where it is not.

        Parameters
        ----------
        path
            A file name that ends in ``.pt2``.
        x
            An input as for `predict`, of which only structure and features count. None: like the
            last one.

        Raises
        ------
        ValueError
            The model cannot be exported with steps and sequences left open; nothing is written.

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
        with self._replicas.together():
            target = check_path(path)
            if x is not None:
                self._open(x)
            if self._example is None:
                raise ValueError("export needs an example x, for there was no fit or predict yet")
            if self._replicas.first:
                export_model(self.model, self._example, target)

    def get_state(self) -> Tree:
        """Return a copy of the state after the last `predict` or `step`; None if fresh."""
        return tree_map(torch.clone, self._predictor.state)

    def set_state(self, state: Tree) -> None:
        """Make `step` and ``predict(reset=False)`` go on from `state`."""
        self._predictor.state = tree_map(lambda a: a.detach().to(self.device, copy=True), state)

    def reset_state(self) -> None:
        """Make the next `step` start new series."""
        self._predictor.state = None

    def _open(self, x: Any, y: Any = None, w: Any = None, mask: Any = None) -> Sequences:
        data = Sequences(x, y, w, mask, dtype=input_dtype(self.model))
        self._example = tree_map(
            lambda s: torch.zeros(1, 1, *s.shape[2:], dtype=data.dtype, device=self.device), data.x
        )
        return data

    def _plan(self, data: Sequences) -> ChunkPlan:
        return ChunkPlan(
            steps=data.steps,
            sequences=data.count,
            batchsize=self.spec.batchsize,
            seqsize=self.spec.seqsize,
            rank=self._replicas.comm.rank,
            size=self._replicas.comm.size,
            by_time=self.spec.shard == "time",
        )

    def _agree(self, data: Sequences, epochs: int) -> None:
        """Make sure that all ranks are about to make the same steps."""
        shape = f"data of {data.steps} steps and {data.count} sequences"
        self._replicas.comm.agree("the run", f"{shape}\n{epochs} epochs\n{self.spec}")
        if self._drawn_seed is None:
            self._drawn_seed = int(torch.randint(2**62, ()).item())
        self._drawn_seed = self._replicas.same_number(self._drawn_seed)

    def _run_epoch(
        self, trainer: Trainer, data: Sequences, plan: ChunkPlan, progress: Progress
    ) -> None:
        number = len(self.history_) + 1
        assert self._drawn_seed is not None
        # Seeded by epoch, so that an epoch is the same whether or not the run was interrupted.
        seed = self._drawn_seed + number
        order = None
        if self.spec.shuffle:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(plan.blocks, generator=generator).tolist()
        progress.epoch(number)
        begin = time.perf_counter()
        with self._seeded(seed):
            loss = trainer.run(data, plan.chunks(order), f"epoch {number}", progress)
        seconds = time.perf_counter() - begin
        self.history_.append(
            {
                "epoch": number,
                "loss": loss,
                "lr": float(self.optimizer.param_groups[0]["lr"]),
                "steps": len(plan),
                "seconds": seconds,
                "steps_per_second": len(plan) / seconds,
            }
        )

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Any:
        """Seed dropout, differently on every rank; leave the user's own generator alone."""
        if self.seed is None and self._replicas.alone:
            yield  # as in a plain loop: torch's global generator, seeded by the user or not
            return
        with torch.random.fork_rng():
            torch.manual_seed((seed * 1_000_003 + self._replicas.comm.rank) % 2**63)
            yield
