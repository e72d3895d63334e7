"""Targets and a model's outputs from all ranks, as rows of samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._util.tree import Tree, tree_map
from ..data.sequences import Sequences
from ..distributed.replicas import Replicas
from ..nn.earlier_steps import in_context
from ..nn.stateful import each_step, in_mode
from ..training.evaluation import chunk_plan, run_chunks
from ..training.learner import Learner
from ..training.time_dependence import wants_whole_series

__all__ = ["Samples", "collect", "samples"]


class Samples(NamedTuple):
    """The samples that count: targets and outputs ``(n, K)``, and nonzero weights ``(n,)``.

    If samples have some but not all of their targets, weights are ``(n, K)``, 0 for missing ones.
    """

    y_true: np.ndarray
    y_pred: np.ndarray
    weights: np.ndarray


def samples(
    learner: Learner,
    data: Sequences,
    *,
    states: dict[int, Tree] | None = None,
    warmup: int = 0,
) -> Samples:
    """Return targets and the model's outputs in evaluation mode, not scaled. Collective.

    If the loss has a true attribute ``at_last_step``, only of chunks' last steps, as it looks at
    no others.

    Parameters
    ----------
    learner
        Holds the model.
    data, states, warmup
        As in `evaluate`.
    """
    learner.replicas.make_common(learner.model)
    whole = wants_whole_series(learner, data)
    chunks = chunk_plan(
        learner.model, data, learner.spec, learner.replicas, by_time=False, whole=whole
    ).chunks()
    model = in_context(learner.model, learner.spec.context)
    first = -1 if getattr(learner.loss, "at_last_step", False) else 0
    undo = learner.undo

    def pieces() -> Iterator[tuple[Tree, Tree, Tensor | None]]:
        for m, _, batch in run_chunks(model, data, chunks, learner.device, states, warmup):
            m.lengths = batch.lengths
            y_true, y_pred = batch.ys, m(batch.xs)
            if getattr(learner.loss, "per_sequence", False):
                y_pred = each_step(y_pred, len(y_true))
            if callable(undo):
                y_true, y_pred = undo(y_true), undo(y_pred)
            yield tree_map(lambda a: a[first:], (y_true, y_pred, batch.ws))

    with torch.no_grad(), in_mode(learner.model, training=False):
        return collect(pieces(), learner.replicas)


def collect(pieces: Iterable[tuple[Tree, Tree, Tensor | None]], replicas: Replicas) -> Samples:
    """Return the samples of all ranks, on every rank, in arbitrary order. Collective.

    Parameters
    ----------
    pieces
        This rank's targets and outputs ``(S, B, …)``, and weights ``(S, B)`` or ``(S, B, …)``, or
        None if all are 1. Samples of weight 0 are left out.
    replicas
        The ranks.

    Raises
    ------
    TypeError
        There are several outputs or targets.
    ValueError
        No sample counts, on any rank; or there are not outputs for every step.
    """
    parts: list[tuple[Tensor, ...]] = []
    for y_true, y_pred, weights in pieces:
        if not isinstance(y_true, Tensor) or not isinstance(y_pred, Tensor):
            raise TypeError(
                "metrics need one output and one target of the model, not several: compute them in "
                "a callback of your own"
            )
        if y_pred.shape[:2] != y_true.shape[:2]:
            raise ValueError(
                f"metrics need outputs of every step and sequence, {tuple(y_true.shape[:2])}, but "
                f"the model returns {tuple(y_pred.shape)}"
            )
        ws = y_true.new_ones(y_true.shape[:2], dtype=torch.float32) if weights is None else weights
        ws = ws.reshape(*ws.shape, *(1,) * (y_true.dim() - ws.dim())).expand(y_true.shape)
        counts = ws.flatten(0, 1).flatten(1).any(1)
        tensors = (y_true.flatten(0, 1), y_pred.flatten(0, 1), ws.flatten(0, 1))
        parts.append(tuple(_for_numpy(tensor[counts]) for tensor in tensors))
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    if not replicas.alone:
        whole = _gathered(whole, replicas)
    if not whole or not len(whole[0]):
        raise ValueError("metrics need at least one sample that counts, but there is none")
    y_true, y_pred, ws = whole
    first = ws.flatten(1)[:, :1]
    if bool((ws.flatten(1) == first).all()):
        ws = first.squeeze(1)
    return Samples(y_true.numpy(), y_pred.numpy(), ws.numpy())


def _for_numpy(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, in a dtype that NumPy has."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.detach().to("cpu", torch.float32 if half else tensor.dtype)


def _gathered(own: list[Tensor], replicas: Replicas) -> list[Tensor]:
    """Return all ranks' rows, rank by rank; a rank may have none."""
    comm = replicas.comm
    counts = torch.zeros(comm.size, dtype=torch.float64)
    counts[comm.rank] = len(own[0]) if own else 0
    rows = [int(count) for count in comm.allreduce_(counts, "sum").tolist()]
    if not any(rows):
        return []
    kinds = [(list(a.shape[1:]), str(a.dtype).removeprefix("torch.")) for a in own]
    root = next(rank for rank, count in enumerate(rows) if count)
    kinds = json.loads(comm.broadcast_bytes(json.dumps(kinds).encode(), root))
    bounds = list(pairwise(accumulate(rows, initial=0)))
    whole = [torch.empty(sum(rows), *shape, dtype=getattr(torch, name)) for shape, name in kinds]
    for number, tensor in enumerate(whole):
        if rows[comm.rank]:
            tensor[slice(*bounds[comm.rank])] = own[number]
        replicas.gather_(tensor, bounds, 0)
    return whole
