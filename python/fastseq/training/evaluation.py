"""Passes over data without training: for losses and for metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._util.tree import Tree
from ..data.chunk_plan import Chunk, ChunkPlan
from ..data.drawn_members import spread_for
from ..data.sequences import Batch, Sequences, to_device
from ..distributed.replicas import Replicas
from ..nn.stateful import Stateful, batch_norms
from .loop import chunk_loss, chunk_weight
from .spec import Spec

__all__ = ["chunk_plan", "evaluate", "nothing_counts", "run_chunks"]


def chunk_plan(
    model: nn.Module,
    data: Sequences,
    spec: Spec,
    replicas: Replicas,
    *,
    by_time: bool | None = None,
    whole: bool = False,
    drawn: bool = False,
) -> ChunkPlan:
    """Return this rank's chunks of data; `whole`: series are not cut. Collective.

    Blocks are the same in training and after it: states carry over from one to the other. Unless
    sequences of different lengths are shuffled into other blocks in each epoch, `drawn`.
    """
    plan = ChunkPlan(
        steps=data.steps,
        sequences=data.count,
        batchsize=spec.batchsize,
        seqsize=data.steps if whole else spec.seqsize,
        rank=replicas.comm.rank,
        size=replicas.comm.size,
        by_time=spec.shard == "time" if by_time is None else by_time,
        joined=bool(batch_norms(model)),
        lengths=data.lengths,
        given=spec.shard == "given",
    )
    if drawn:
        plan = plan.with_room(spread_for(model))
    if plan.given:
        counts = plan.own_chunks if plan.counts is None else plan.counts
        plan = dataclasses.replace(plan, counts=replicas.largest(counts))
    return plan


def evaluate(
    model: nn.Module,
    loss: Callable[..., Tensor],
    data: Sequences,
    chunks: Iterable[Chunk],
    device: torch.device,
    replicas: Replicas,
    *,
    states: dict[int, Tree] | None = None,
    warmup: int = 0,
) -> float:
    """Return the mean loss over `chunks` without training; the model is in evaluation mode.

    Parameters
    ----------
    model, loss, data, chunks, device, replicas
        The model, its loss and data, and where to compute.
    states
        Each block's initial state; None: a fresh one.
    warmup
        Warm-up steps at the start of each block: they update the state but do not count.

    Raises
    ------
    ValueError
        Nothing counts, on any rank.
    """
    total: Any = 0.0
    weights = 0.0
    with torch.no_grad():
        for m, chunk, batch in run_chunks(model, data, chunks, device, states, warmup):
            weight = chunk_weight(chunk, batch)
            value: Any = chunk_loss(loss, m, batch)
            if weight:
                total += weight * value.double()  # read at the end: on a GPU reading waits
                weights += weight
    mean, weights = replicas.mean_loss(float(total) / weights if weights else 0.0, weights)
    if not weights:
        raise nothing_counts("to compute a loss on")
    return mean


def nothing_counts(purpose: str) -> ValueError:
    """Return the error for data in which no sample counts."""
    return ValueError(
        f"there is nothing {purpose}: no sample of y counts, as w is 0, mask false, lengths 0, or "
        "inputs or targets are missing everywhere"
    )


def run_chunks(
    model: nn.Module,
    data: Sequences,
    chunks: Iterable[Chunk],
    device: torch.device,
    states: dict[int, Tree] | None,
    warmup: int,
) -> Iterator[tuple[Stateful, Chunk, Batch]]:
    """Yield the chunks to evaluate, in order, each with the model in the state before it."""
    stateful = Stateful(model)
    for chunk, batch in data.batches(_divided(chunks, warmup)):
        if chunk.index == 0:
            stateful.set_state(None if states is None else states.get(chunk.block))
        if batch is None:
            continue
        batch = to_device(batch, device)
        if chunk.t1 <= warmup:
            stateful.lengths = batch.lengths
            stateful(batch.xs)
        else:
            yield stateful, chunk, batch


def _divided(chunks: Iterable[Chunk], step: int) -> Iterator[Chunk]:
    """Split chunks at `step` if it is inside them."""
    for chunk in chunks:
        if chunk.t0 < step < chunk.t1:
            yield dataclasses.replace(chunk, t1=step)
            chunk = dataclasses.replace(chunk, t0=step, index=max(chunk.index, 1))  # keeps state
        yield chunk
