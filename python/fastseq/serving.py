"""What a trained estimator does for programs that serve it: single steps, states, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .arguments import check_features, input_dtype
from .data.arguments import step_input
from .data.nonfinite import fill_step
from .distributed import communicator
from .export import check_path, export_model
from .looking import check_steps
from .parallel import Replicas
from .saving import load_estimator, save_estimator
from .scaling import Scaling
from .spec import Spec
from .training import to_device
from .tree import Tree, tree_map

if TYPE_CHECKING:
    from .data.sequences import Sequences
    from .predicting import Predictor

__all__ = ["Serving"]

S = TypeVar("S", bound="Serving")

_UNSCALED = Scaling(None, None)


class Serving:
    """The part of `Estimator` that needs no targets and no passes over data."""

    model: nn.Module
    spec: Spec
    device: torch.device
    scaling_: Scaling | None
    _replicas: Replicas
    _predictor: Predictor
    _example: Tree
    _squeezed: bool

    if TYPE_CHECKING:

        def _open(self, x: Any) -> Sequences: ...

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

        Raises
        ------
        ValueError
            `x` is not what it should be, or how to scale it is not known yet. The state is as it
            was.
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
        self._check_measured()
        scaling = _UNSCALED if self.scaling_ is None else self.scaling_
        xs = fill_step(scaling.apply(step_input(x), input_dtype(self.model)), self.spec.nan)
        check_features(self.model, xs)
        check_steps(self, xs)  # type: ignore[arg-type]  # it is a part of it
        xs = to_device(xs, self.device)
        return self._predictor.step(xs, squeeze=self._squeezed, undo=self._undo)

    def export(self, path: str | os.PathLike[str], x: Any = None) -> None:
        """Write the model, in evaluation mode, as a `torch.export` program that needs no fastseq.

        The program is ``program(x, state) -> (y, state)`` for any number of steps and sequences:
        `x` and `y` as in `predict`, but tensors, `state` a tuple of tensors, the leaves of what
        `get_state` returns. `x` has the model's dtype; scaled inputs are fp32 at least, and fp64
        where those of `fit` held more. Models without state, and models that look at later steps
        and so take whole series, are ``program(x) -> y``. Rank 0 writes.

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
        with self._replicas.together("export"):
            target = check_path(path)
            self._check_measured()
            self._replicas.make_common(self.model)
            if x is not None:
                self._open(x)
            if self._example is None:
                raise ValueError("export needs an example x, for there was no fit or predict yet")
            if self._replicas.first:
                export_model(self.model, self._example, target, self.scaling_)

    def save(self, path: str | os.PathLike[str], *, state: bool = False) -> None:
        """Write the estimator to a file, from which `load` makes it again. Rank 0 writes.

        In the file, a safetensors file, are weights and buffers, spec, scaling, seed, history and
        how to build the model if it is made of layers that fastseq knows. Loss, optimizer and
        callbacks are code, and left out; to go on with a run of `fit`, use its checkpoints.

        Parameters
        ----------
        path
            The file. It is complete, or as it was before.
        state
            Whether the state after the last `predict` or `step` comes with it, so that the next
            `step` of what is loaded goes on there.

        Raises
        ------
        TypeError
            State or buffers are something else than tensors, numbers, strings and plain tuples,
            lists and dicts of these.
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
        with self._replicas.together("save"):
            target = Path(path)
            self._replicas.make_common(self.model)
            if self._replicas.first:
                save_estimator(self, target, state=state)

    @classmethod
    def load(
        cls: type[S],
        path: str | os.PathLike[str],
        model: nn.Module | Callable[[], nn.Module] | None = None,
        *,
        loss: Callable[..., Tensor] | None = None,
        optimizer: Any = None,
        comm: Any = "auto",
        **options: Any,
    ) -> S:
        """Make an estimator of a file that `save` wrote. All ranks read it. No code is run.

        Parameters
        ----------
        path
            The file.
        model
            A model like the one that was saved, or what returns one; it gets the weights. None:
            the file tells how to build it, if it was made of `nn.Chain`, `torch.nn.Sequential` and
            layers that are usual in them.
        loss
            As for the constructor; `fit` and `evaluate` need it.
        optimizer
            As for the constructor; `fit` needs it. It starts afresh.
        comm, **options
            More of what the constructor takes; ``device`` and others are not in the file.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CheckpointError
            It is damaged, not written by `save`, or of another model; the message names the first
            difference. Pickles are not opened.
        ValueError
            The file does not tell how to build the model, and there is none given.

        Examples
        --------
        See `save`.
        """
        replicas = Replicas(communicator(comm))
        with replicas.together("load"):
            options["comm"] = replicas.comm
            return load_estimator(cls, Path(path), model, loss, optimizer, options)

    def get_state(self) -> Tree:
        """Return a copy of the state after the last `predict` or `step`; None if fresh."""
        return tree_map(torch.clone, self._predictor.state)

    def set_state(self, state: Tree) -> None:
        """Make `step` and ``predict(reset=False)`` go on from `state`."""
        self._predictor.state = tree_map(lambda a: a.detach().to(self.device, copy=True), state)

    def reset_state(self) -> None:
        """Make the next `step` start new series."""
        self._predictor.state = None

    def _check_measured(self) -> None:
        """Raise if data are to be scaled, and it is not known how."""
        spec = self.spec
        if self.scaling_ is None and (spec.scale_x is not None or spec.scale_y is not None):
            raise ValueError("how to scale is measured by fit, which has not been called yet")

    @property
    def _undo(self) -> Tree:
        return None if self.scaling_ is None else self.scaling_.undo
