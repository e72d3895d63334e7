"""What a trained estimator does for programs that serve it: single steps, states, files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .arguments import input_dtype, step_input
from .export import check_path, export_model
from .training import to_device
from .tree import Tree, tree_map

if TYPE_CHECKING:
    from .data.sequences import Sequences
    from .parallel import Replicas
    from .predicting import Predictor
    from .scaling import Scaling

__all__ = ["Serving"]


class Serving:
    """The part of `Estimator` that needs no targets and no passes over data."""

    model: nn.Module
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

        Examples
        --------
        >>> import fastseq as fs
        >>> spec = dict(epochs=1, batchsize=4, seqsize=10)
        >>> est = fs.Estimator(nn.GRU(3, 2), fs.seqloss(nn.MSELoss()), torch.optim.SGD, spec)
        >>> est.step(torch.zeros(8, 3)).shape
        torch.Size([8, 2])
        """
        xs = step_input(x, input_dtype(self.model))
        if self.scaling_ is not None:
            xs = self.scaling_.apply(xs)
        xs = to_device(xs, self.device)
        return self._predictor.step(xs, squeeze=self._squeezed, undo=self._undo)

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
                export_model(self.model, self._example, target, self.scaling_)

    def get_state(self) -> Tree:
        """Return a copy of the state after the last `predict` or `step`; None if fresh."""
        return tree_map(torch.clone, self._predictor.state)

    def set_state(self, state: Tree) -> None:
        """Make `step` and ``predict(reset=False)`` go on from `state`."""
        self._predictor.state = tree_map(lambda a: a.detach().to(self.device, copy=True), state)

    def reset_state(self) -> None:
        """Make the next `step` start new series."""
        self._predictor.state = None

    @property
    def _undo(self) -> Tree:
        return None if self.scaling_ is None else self.scaling_.undo
