"""Replicas of a model on several ranks: kept equal, averaged, and failing together."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from ..errors import CommunicationError, RemoteError
from . import Communicator

__all__ = ["Replicas"]

_PIECE_BYTES = 64 * 2**20


def _others_know(error: BaseException | None) -> bool:
    """Return whether other ranks know of an error or one of its causes, or reported it."""
    while error is not None:
        if isinstance(error, RemoteError | CommunicationError) or hasattr(error, "_told"):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _advise(error: BaseException, call: str) -> None:
    """Have an error about a rank that has ended say which call that rank has left out."""
    if isinstance(error, CommunicationError) and re.search(r"rank \d+ has exited", str(error)):
        text = str(error).removesuffix("; every rank must make the same calls")
        if "every rank must call" not in text:
            error.args = (f"{text}; every rank must call {call}", *error.args[1:])


class Replicas:
    """Keep replicas in sync during `fit` and `predict`; nearly a no-op on one process.

    Parameters
    ----------
    comm
        The ranks.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.alone: bool = comm.size == 1
        self.first: bool = comm.rank == 0
        self.exchange: str | None = None  # how gradients travelled last
        # Samples that this rank has trained on since buffers were last equal; None: they are equal.
        self.since_common: float | None = None

    @contextmanager
    def together(self, call: str) -> Iterator[None]:
        """Make an error in the body of a ``with`` raise on all ranks, and end it with a barrier.

        Uses may be nested, as when a callback of `fit` calls `predict`: a failure is reported to
        the others once.

        Parameters
        ----------
        call
            The user's call, for messages.
        """
        if self.alone:
            yield
            return
        with self.comm.purpose(call):
            try:
                yield
                self.comm.barrier()
            except BaseException as error:
                _advise(error, call)
                if not _others_know(error):
                    with suppress(AttributeError):
                        error._told = True  # type: ignore[attr-defined]
                    with suppress(CommunicationError):  # if the ranks are out of step, all know
                        self.comm.fail(f"{type(error).__name__}: {error}")
                raise

    def meet(self) -> None:
        """Wait for all ranks. Collective.

        Before rank 0 writes a file: if other ranks do not make the call, that is an error, and the
        file is left as it was.
        """
        if not self.alone:
            self.comm.barrier()

    def same_number(self, value: int) -> int:
        """Return rank 0's value, of 64 bits, on all ranks."""
        if self.alone:
            return value
        return int(self.comm.broadcast_(torch.tensor(value, dtype=torch.int64)).item())

    def in_common(self, flags: list[bool]) -> list[bool]:
        """Return which flags are true on all ranks."""
        if self.alone:
            return flags
        ranks = self.comm.allreduce_(torch.tensor(flags, dtype=torch.float64), "sum")
        return [count == self.comm.size for count in ranks.tolist()]

    def largest(self, counts: list[int]) -> list[int]:
        """Return the largest of the ranks' counts, place by place, as many as the longest list.

        Counts are not negative: a rank with a shorter list has 0 of the rest.
        """
        if self.alone:
            return counts
        size = torch.zeros(self.comm.size, dtype=torch.float64)
        size[self.comm.rank] = len(counts)
        ranks = torch.zeros(
            self.comm.size, int(self.comm.allreduce_(size, "sum").max()), dtype=torch.float64
        )
        ranks[self.comm.rank, : len(counts)] = torch.tensor(counts, dtype=torch.float64)
        return [int(count) for count in self.comm.allreduce_(ranks, "sum").amax(0)]

    def same_data(self, about: Callable[[], str]) -> None:
        """Raise `ValueError` on all ranks unless they were given the same data. Collective.

        Parameters
        ----------
        about
            Returns a description of this rank's data.
        """
        if self.alone:
            return
        try:
            self.comm.agree("what is passed as data", about())
        except ValueError as error:
            raise ValueError(
                f"{error}; ranks share the work on the same data: pass all data to each rank, or "
                'set spec.shard="given" if every rank has its own'
            ) from None

    def sync(self, optimizer: torch.optim.Optimizer) -> None:
        """Give all ranks rank 0's optimizer state."""
        if self.alone:
            return
        stream = io.BytesIO()
        if self.first:
            torch.save(optimizer.state_dict(), stream)
        state = self.comm.broadcast_bytes(stream.getvalue(), 0)
        if not self.first:
            device = optimizer.param_groups[0]["params"][0].device
            loaded = torch.load(io.BytesIO(state), map_location=device, weights_only=True)
            optimizer.load_state_dict(loaded)

    def trained(self, weight: float) -> None:
        """Note an update, which may have changed buffers, on `weight` of this rank's samples."""
        self.since_common = (self.since_common or 0.0) + weight

    def make_common(self, model: nn.Module) -> None:
        """Make buffers the same on all ranks, if updates may have made them differ. Collective.

        Floating-point ones, such as BatchNorm's statistics, become the mean weighted by each rank's
        samples since they were last equal, or the plain mean if no sample counted; others, such as
        counts of updates, the maximum (exact up to 2**53).
        """
        if self.since_common is None:
            return
        weight, self.since_common = self.since_common, None
        buffers = [torch.view_as_real(b) if b.is_complex() else b for b in model.buffers()]
        buffers = [b.detach() for b in buffers if b.numel()]
        if not buffers:
            return
        sums = torch.tensor([_checksum(b) for b in buffers], dtype=torch.float64)
        equal = self.in_common((sums == self.comm.broadcast_(sums.clone())).tolist())
        total = float(self.comm.allreduce_(torch.tensor(weight, dtype=torch.float64), "sum"))
        share = weight / total if total else 1 / self.comm.size
        for buffer in (b for b, same in zip(buffers, equal, strict=True) if not same):
            own = buffer.to("cpu", torch.float64)
            if not buffer.is_floating_point():
                ranks = own.new_zeros((self.comm.size, *own.shape))
                ranks[self.comm.rank] = own
                buffer.copy_(self.comm.allreduce_(ranks, "sum").amax(0))
            else:  # without samples a rank's own may be NaN
                own = own * share if share else torch.zeros_like(own)
                buffer.copy_(self.comm.allreduce_(own, "sum"))

    def mean_loss(self, loss: float, weight: float) -> tuple[float, float]:
        """Return the weighted mean of losses over all ranks, and the sum of the weights."""
        if self.alone:
            return loss, weight
        sums = torch.tensor([weight * loss if weight else 0.0, weight], dtype=torch.float64)
        total, weights = self.comm.allreduce_(sums, "sum").tolist()
        return (total / weights if weights else 0.0), weights

    def gather_(self, whole: Tensor, bounds: list[tuple[int, int]], dim: int) -> None:
        """Fill `whole` on all ranks; rank r has the part ``bounds[r]`` along `dim`."""
        if self.alone:
            return
        for root, (begin, end) in enumerate(bounds):
            piece = whole.narrow(dim, begin, end - begin)
            rows = max(1, _PIECE_BYTES // max(1, piece[:1].numel() * piece.element_size()))
            for rows_piece in torch.split(piece, rows) if piece.numel() else ():
                rows_piece.copy_(self.comm.broadcast_(rows_piece.contiguous(), root))


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
