"""Replicas of a model on several ranks: kept equal, averaged over, failing together."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from .distributed import Communicator
from .errors import CommunicationError, RemoteError

__all__ = ["Replicas"]

_PIECE_BYTES = 64 * 2**20


def _others_know(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, was told to the other ranks or by them."""
    while error is not None:
        if isinstance(error, RemoteError | CommunicationError) or hasattr(error, "_told"):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


class Replicas:
    """What `fit` and `predict` need of other ranks; without other ranks nearly nothing happens.

    Parameters
    ----------
    comm
        The ranks.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.alone = comm.size == 1
        self.first = comm.rank == 0

    @contextmanager
    def together(self, call: str) -> Iterator[None]:
        """Run a block that raises on all ranks if it raises on one, and ends on all at once.

        Blocks may be nested, as where a callback of `fit` calls `predict`: a failure is told to the
        others once.

        Parameters
        ----------
        call
            What the user has called, for messages.
        """
        if self.alone:
            yield
            return
        with self.comm.purpose(call):
            try:
                yield
                self.comm.barrier()
            except BaseException as error:
                if not _others_know(error):
                    with suppress(AttributeError):
                        error._told = True  # type: ignore[attr-defined]
                    with suppress(CommunicationError):  # where the ranks are out of step, all know
                        self.comm.fail(f"{type(error).__name__}: {error}")
                raise

    def same_number(self, value: int) -> int:
        """Return rank 0's value on all ranks."""
        if self.alone:
            return value
        return int(self.comm.broadcast_(torch.tensor(value, dtype=torch.int64)).item())

    def in_common(self, flags: list[bool]) -> list[bool]:
        """Return which flags are true on all ranks."""
        if self.alone:
            return flags
        ranks = self.comm.allreduce_(torch.tensor(flags, dtype=torch.float64), "sum")
        return [count == self.comm.size for count in ranks.tolist()]

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

    def mean_loss(self, loss: float, weight: float) -> tuple[float, float]:
        """Return the weighted mean of losses over all ranks, and the sum of the weights."""
        if self.alone:
            return loss, weight
        sums = torch.tensor([weight * loss if weight else 0.0, weight], dtype=torch.float64)
        total, weights = self.comm.allreduce_(sums, "sum").tolist()
        return (total / weights if weights else 0.0), weights

    def gather_(self, whole: Tensor, bounds: list[tuple[int, int]], dim: int) -> None:
        """Fill `whole` on all ranks: rank r has the part ``bounds[r]`` along `dim`."""
        if self.alone:
            return
        for root, (begin, end) in enumerate(bounds):
            piece = whole.narrow(dim, begin, end - begin)
            rows = max(1, _PIECE_BYTES // max(1, piece[:1].numel() * piece.element_size()))
            for rows_piece in torch.split(piece, rows) if piece.numel() else ():
                rows_piece.copy_(self.comm.broadcast_(rows_piece.contiguous(), root))
