"""Gradients averaged over ranks while backward is still running."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DivergedError
from .communicators import Communicator, communicator
from .native_bucketizers import DeviceBucketizer, HostBucketizer, Update

__all__ = ["Averaged", "Bucketizer"]

BUCKET_BYTES = 4 * 2**20
"""Default size of a bucket: a good value for several models in `bench/bench_step.py`."""

_NONFINITE = ("raise", "skip", "ignore")
_UNUSED = ("none", "error")


class Averaged:
    """What all ranks know after an update.

    On a GPU the host knows only `weight` and `attention`: reading anything else waits for the GPU.

    Parameters
    ----------
    update
        What the native bucketizer tells.
    norm
        Whether the norm was wanted.

    Attributes
    ----------
    weight
        Sum of the ranks' weights; 0: no rank had data, and the optimizer must not update.
    attention
        Whether a rank asked for attention in `Bucketizer.start`.
    facts
        None, or `value`, `nonfinite_rank` and `norm` as a tensor on the GPU, whether wanted or not.

    Raises
    ------
    CommunicationError
        When a value is read from the GPU: the exchange has failed.

    Examples
    --------
    >>> model = nn.Linear(3, 1)
    >>> buckets = Bucketizer(model, norm=True)
    >>> buckets.start(weight=2, value=0.5)
    >>> model(torch.ones(2, 3)).mean().backward()
    >>> averaged = buckets.wait()
    >>> averaged.weight, averaged.value, averaged.finite, averaged.norm
    (2.0, 0.5, True, 2.0)
    """

    def __init__(self, update: Update, *, norm: bool) -> None:
        self.weight: float = update.weight
        self.attention: bool = update.attention
        self.facts: Tensor | None = None
        self._known: tuple[float, int, float] | None = None
        if isinstance(update.facts, Tensor):
            self.facts = update.facts.clone()
        else:
            self._known = update.facts
        self._raise_if_broken = update.raise_if_broken
        self._norm = norm

    def __repr__(self) -> str:
        known = "" if self._known is None else f", value={self.value}, finite={self.finite}"
        return f"Averaged(weight={self.weight}, attention={self.attention}{known})"

    def _read(self) -> tuple[float, int, float]:
        if self._known is None:
            assert self.facts is not None
            self._raise_if_broken()  # else reading them might never end,
            value, rank, norm = self.facts.tolist()
            self._raise_if_broken()  # and what has been read might be none
            self._known = value, int(rank), norm
        return self._known

    @property
    def value(self) -> float:
        """Weighted mean of the ranks' values."""
        return self._read()[0]

    @property
    def nonfinite_rank(self) -> int:
        """The lowest rank with an infinite or NaN gradient, or -1."""
        return self._read()[1]

    @property
    def finite(self) -> bool:
        """Whether all gradients were finite."""
        return self.nonfinite_rank < 0

    @property
    def norm_tensor(self) -> Tensor | None:
        """`norm` where it is on a GPU."""
        return self.facts[2] if self._norm and self.facts is not None else None

    @property
    def norm(self) -> float | None:
        """Euclidean norm of all averaged gradients, if `Bucketizer` was made with ``norm=True``."""
        return self._read()[2] if self._norm else None


class Bucketizer:
    """Average a model's gradients over the ranks, overlapping the exchange with backward.

    Gradients are copied once, into memory that the other ranks see. They are averaged there, and
    the optimizer reads them from there: after `wait` each ``.grad`` is a view of this memory. The
    result is bitwise equal on all ranks, and with shared memory does not depend on `bucket_bytes`.
    Before `wait`, the ``.grad`` of a gradient that has been taken over is None.

    A parameter may get several gradients before `wait`, as with reentrant checkpoints or several
    losses: they are summed. Those after the first are exchanged in `wait`; from the next update on,
    all gradients of such a model are.

    Gradients of a model on a GPU are averaged there: see `Communicator` for the ways. The exchange
    is asynchronous: later work in the current stream finds the means, without a wait of the host
    for the GPU unless `nonfinite` is ``"raise"``.

    Parameters
    ----------
    model
        The model, the same on all ranks: rank 0's parameters and buffers are broadcast on
        construction.
    comm
        The ranks, as in `communicator`. From the first gradient of an update until `wait` nothing
        else may use it; elsewhere use a `Communicator.duplicate`.
    bucket_bytes
        Bytes exchanged at a time.
    nonfinite
        What an infinite or NaN gradient on any rank does: ``"raise"`` raises `DivergedError` on
        all ranks, ``"skip"`` reports it in `Averaged.finite`, so that all ranks can skip the
        update; ``"ignore"`` does nothing.
    unused
        Parameters that got no gradient on any rank: ``"none"`` leaves their ``.grad`` None,
        ``"error"`` raises `RuntimeError` on all ranks and names them. One that got none on some
        ranks counts as zero there.
    norm
        Whether `wait` returns the norm of the averaged gradients, as clipping needs it: the ranks
        compute it while they average, each for its part.

    Attributes
    ----------
    exchange
        How the gradients travel: a transport of `Communicator`, or one of its ways between GPUs.

    Raises
    ------
    ValueError
        An option is invalid, the ranks' models or options differ, or the model has no trainable
        parameters.
    TypeError
        `comm` is something else. In backward or `wait`: a gradient is sparse.

    Examples
    --------
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> buckets = Bucketizer(model)
    >>> for x, y in [(torch.ones(2, 3), torch.ones(2, 1))]:
    ...     optimizer.zero_grad()
    ...     nn.functional.mse_loss(model(x), y).backward()
    ...     _ = buckets.wait()
    ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        comm: Any = "auto",
        *,
        bucket_bytes: int = BUCKET_BYTES,
        nonfinite: str = "raise",
        unused: str = "none",
        norm: bool = False,
    ) -> None:
        if nonfinite not in _NONFINITE:
            raise ValueError(f"nonfinite must be one of {_NONFINITE}, got {nonfinite!r}")
        if unused not in _UNUSED:
            raise ValueError(f"unused must be one of {_UNUSED}, got {unused!r}")
        if bucket_bytes <= 0:
            raise ValueError(f"bucket_bytes must be positive, got {bucket_bytes}")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters: nothing to average")
        self._comm: Communicator = communicator(comm)
        self._names = [name for name, _ in named]
        self._params = [p for _, p in named]
        self._nonfinite = nonfinite
        self._unused = unused
        self._norm = norm
        self._paused = False
        self._closed = False
        self._given = [False] * len(named)
        self._gathered = 0
        self._weight = 1.0
        self._scale = 1.0
        self._taken: dict[int, Tensor] = {}  # gradients that have not been gathered yet
        self._late: dict[int, Tensor] = {}  # what came after a parameter's first gradient
        self._in_use: Any = None
        with self._comm.purpose("Bucketizer"):
            self._make(model, bucket_bytes)
        # A single bucket is full only when backward has ended: hooks would gain nothing.
        listening = enumerate(self._params if len(self._native.members) > 1 else [])
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._hook(i))  # type: ignore[no-untyped-call]
            for i, p in listening
        ]
        _made.add(self)

    def _make(self, model: nn.Module, bucket_bytes: int) -> None:
        """Make the ranks' models equal, and allocate the places of their gradients."""
        whole = [*model.named_parameters(), *model.named_buffers()]
        lines = [f"{name} {tuple(t.shape)} {t.dtype} {t.requires_grad}" for name, t in whole]
        lines += [f"buckets of {bucket_bytes} bytes", f"norm={self._norm}"]
        self._comm.agree("the model", "\n".join(lines))
        with torch.no_grad():
            for _, tensor in whole:
                self._comm.broadcast_(tensor)
        make = native_for(self._params)
        self._native = make(self._comm, self._params, bucket_bytes, norm=self._norm)
        self.exchange: str = self._native.exchange
        self._places = self._native.places

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def ready(param: Tensor) -> None:
            if not self._paused:
                if not self._native.started:
                    self.start()
                if not self._given[index]:  # else it is found in `wait`
                    self._give(index, param)

        return ready

    def _give(self, index: int, param: Tensor) -> None:
        grad = param.grad
        if grad is None or grad.layout != torch.strided:
            raise TypeError(
                f"the gradient of {self._names[index]} is {grad if grad is None else grad.layout}; "
                "only dense gradients can be averaged (nn.Embedding: sparse=False)"
            )
        grad = grad.resolve_conj().resolve_neg()
        self._given[index] = True
        # Else autograd would add the next one to it: while it is read, or to the average.
        param.grad = None
        if grad.stride() != self._places[index].stride():
            grad = torch.empty_like(self._places[index]).copy_(grad)
        self._taken[index] = grad
        self._let_go(self._native.ready(index, grad))

    def _let_go(self, gathered: int) -> None:
        """Drop gradients that have been gathered, so that their memory can be reused.

        So backward works in memory that is still in the cache, and never holds all gradients.
        """
        for bucket in range(self._gathered, gathered):
            for i in self._native.members[bucket]:
                self._taken.pop(i, None)
        self._gathered = gathered

    def start(
        self,
        weight: float = 1.0,
        value: float | Tensor = 0.0,
        *,
        attention: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Start an update, before backward. Without it, the first gradient starts one of weight 1.

        Parameters
        ----------
        weight
            Weight of this rank's gradients in the mean: the number of samples, say. With weight 0
            they are ignored.
        value
            A number to average by the same weights: the loss, say. On a GPU as a tensor with one
            element, so that nobody waits for it.
        attention
            Whether this rank has something to agree on, such as stopping. All ranks learn at the
            end of the update whether any rank has.
        scale
            Multiplies this rank's gradients before they are averaged. For gradients accumulated
            over `weight` samples with a loss summed over them, ``1 / weight``.

        Raises
        ------
        RuntimeError
            An update is already under way.
        ValueError
            `weight` is negative, infinite or NaN.
        """
        self._native.start(weight, value, attention, scale)
        self._weight, self._scale = weight, scale
        self._in_use = self._comm.reserved("a Bucketizer's update")
        self._in_use.__enter__()

    def wait(self) -> Averaged:
        """Exchange the rest, wait until all is done, and point each ``.grad`` at its mean.

        Returns
        -------
        Averaged
            What all ranks know after the update.

        Raises
        ------
        DivergedError
            As `nonfinite` says.
        RuntimeError
            No update is under way, or as `unused` says.
        RemoteError, CommunicationError
            Another rank has failed, makes another call, or does not join.
        """
        try:
            if not self._native.started and not self._hooks and self._has_gradients():
                self.start()
            if self._native.started:
                try:
                    self._give_rest()
                except BaseException:
                    self._native.abandon()
                    raise
            update = self._native.finish()
            late = self._late
        finally:
            self._release()
        for p, place in zip(self._params, self._places, strict=True):
            p.grad = place
        for i in update.unused:
            self._params[i].grad = None
        averaged = Averaged(update, norm=self._norm)
        if self._hooks:
            averaged = self._with_late(averaged, late)
        if self._nonfinite == "raise":
            check_finite(averaged.nonfinite_rank)
        if update.unused and self._unused == "error":
            names = ", ".join(self._names[i] for i in update.unused)
            raise RuntimeError(f"these parameters got no gradient on any rank: {names}")
        return averaged

    def stop_listening(self) -> None:
        """Look for gradients in `wait` only.

        To be called on all ranks, or on none.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def host(self) -> HostBucketizer:
        """What averages gradients on the host, for updates in C++: call `stop_listening` before."""
        assert isinstance(self._native, HostBucketizer)
        return self._native

    def reserved(self) -> AbstractContextManager[None]:
        """Keep others from using the communicator while updates are made in C++.

        Returns
        -------
        context manager
            In its body, other calls of the communicator raise `RuntimeError`.
        """
        return self._comm.reserved("updates in C++")

    def _has_gradients(self) -> bool:
        return not self._closed and any(p.grad is not None for p in self._params)

    def _give_rest(self) -> None:
        """Hand over gradients that no hook saw."""
        for i, p in enumerate(self._params):
            if p.grad is None:
                continue
            if self._given[i]:
                self._late[i] = p.grad
            else:
                self._give(i, p)

    def _with_late(self, averaged: Averaged, late: dict[int, Tensor]) -> Averaged:
        """Add the mean of late gradients, if a rank has some, to what has been averaged."""
        late = late if self._weight else {}
        size = self._comm.size
        facts = torch.zeros(size + len(self._params), dtype=torch.float64)
        facts[self._comm.rank] = any(not bool(grad.isfinite().all()) for grad in late.values())
        facts[[size + i for i in late]] = 1
        self._comm.allreduce_(facts, "sum")
        found = [i for i, count in enumerate(facts[size:].tolist()) if count]
        for i in found:
            place = self._places[i]
            mean = torch.zeros(place.shape, dtype=torch.promote_types(place.dtype, torch.float32))
            if i in late:
                mean.copy_(late[i]).mul_(self._weight / averaged.weight * self._scale)
            place.add_(self._comm.allreduce_(mean, "sum").to(place))
        if not found:
            return averaged
        self.stop_listening()  # it will happen again
        bad = facts[:size].nonzero().flatten().tolist()
        rank = averaged.nonfinite_rank if averaged.nonfinite_rank >= 0 or not bad else bad[0]
        norm = float(nn.utils.get_total_norm(self._places)) if self._norm else 0.0
        known = (averaged.value, rank, norm)
        return Averaged(Update(averaged.weight, averaged.attention, [], known), norm=self._norm)

    def abandon(self) -> None:
        """End an update that failed on this rank: finish the exchanges that have started.

        Does nothing if no update is under way.

        Raises
        ------
        RemoteError, CommunicationError
            The exchanges have failed.
        """
        try:
            if self._native.started:
                self._native.abandon()
        finally:
            self._release()

    def _release(self) -> None:
        self._taken.clear()
        self._late = {}
        self._given = [False] * len(self._params)
        self._gathered = 0
        if self._in_use is not None:
            self._in_use.__exit__(None, None, None)
            self._in_use = None

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients locally: for all but the last backward of an update.

        Yields
        ------
        None
            In the body of the ``with``, backward adds to each ``.grad``, and nothing is exchanged.

        Examples
        --------
        >>> model = nn.Linear(3, 1)
        >>> buckets = Bucketizer(model)
        >>> with buckets.no_sync():
        ...     model(torch.ones(2, 3)).mean().backward()
        >>> model(torch.ones(2, 3)).mean().backward()
        >>> _ = buckets.wait()
        >>> model.weight.grad
        tensor([[2., 2., 2.]])
        """
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def close(self) -> None:
        """Release the model: give it its own gradients, and remove all hooks."""
        self.stop_listening()
        self._closed = True
        for p, place in zip(self._params, self._places, strict=True):
            if p.grad is place:
                p.grad = place.clone()


# All that exist: an update under way when the process ends must not continue in MPI's last call.
_made: weakref.WeakSet[Bucketizer] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for buckets in list(_made):
        buckets._native.stop()
        buckets._release()


def native_for(params: Sequence[Tensor]) -> type[HostBucketizer | DeviceBucketizer]:
    """Return the native bucketizer for gradients of these parameters."""
    return DeviceBucketizer if any(p.is_cuda for p in params) else HostBucketizer


def check_finite(nonfinite_rank: int) -> None:
    """Raise `DivergedError` if a rank has a gradient that is not finite."""
    if nonfinite_rank >= 0:
        raise DivergedError(
            f"rank {nonfinite_rank} has an infinite or NaN gradient: lower the learning rate, "
            "clip, or look for NaN in its data"
        )
