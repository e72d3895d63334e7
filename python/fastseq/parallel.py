"""Replicas of a model on several ranks: kept equal, averaged over, failing together."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from ._ops import pack
from .distributed import FLAT_ALIGNMENT, Communicator, flat_groups
from .errors import CommunicationError, RemoteError

__all__ = ["Replicas"]

_PIECE_BYTES = 64 * 2**20


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
    def together(self) -> Iterator[None]:
        """Run a block that raises on all ranks if it raises on one, and ends on all at once."""
        if self.alone:
            yield
            return
        try:
            yield
            self.comm.barrier()
        except (RemoteError, CommunicationError):
            raise  # the others know already
        except BaseException as error:
            with suppress(CommunicationError):  # where the ranks are out of step, all know
                self.comm.fail(f"{type(error).__name__}: {error}")
            raise

    def same_number(self, value: int) -> int:
        """Return rank 0's value on all ranks."""
        if self.alone:
            return value
        return int(self.comm.broadcast_(torch.tensor(value, dtype=torch.int64)).item())

    def agree(self, what: str, value: str) -> None:
        """Raise `ValueError` where `value` is not rank 0's: ranks that differ can't go on."""
        if self.alone:
            return
        theirs = self._broadcast_bytes(value.encode(), 0).decode()
        if value != theirs:
            lines = zip(value.splitlines(), theirs.splitlines(), strict=False)
            mine, first = next(((a, b) for a, b in lines if a != b), (value, theirs))
            raise ValueError(
                f"{what} differs between ranks: rank {self.comm.rank} has {mine}, rank 0 {first}"
            )

    def sync(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give all ranks rank 0's parameters, buffers and optimizer state."""
        if self.alone:
            return
        tensors = [*model.named_parameters(), *model.named_buffers()]
        layout = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in tensors]
        self.agree("the model", "\n".join(layout))
        with torch.no_grad():
            for _, tensor in tensors:
                self.comm.broadcast_(tensor)
        stream = io.BytesIO()
        if self.first:
            torch.save(optimizer.state_dict(), stream)
        state = self._broadcast_bytes(stream.getvalue(), 0)
        if not self.first:
            device = tensors[0][1].device if tensors else "cpu"
            loaded = torch.load(io.BytesIO(state), map_location=device, weights_only=True)
            optimizer.load_state_dict(loaded)

    def _broadcast_bytes(self, data: bytes, root: int) -> bytes:
        length = torch.tensor(len(data), dtype=torch.int64)
        buffer = torch.empty(int(self.comm.broadcast_(length, root)), dtype=torch.uint8)
        if self.comm.rank == root:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return bytes(self.comm.broadcast_(buffer, root).numpy())

    def mean_loss(self, loss: float, weight: float) -> tuple[float, float]:
        """Return the weighted mean of losses over all ranks, and the sum of the weights."""
        if self.alone:
            return loss, weight
        sums = torch.tensor([weight * loss if weight else 0.0, weight], dtype=torch.float64)
        total, weights = self.comm.allreduce_(sums, "sum").tolist()
        return (total / weights if weights else 0.0), weights

    def average_gradients(self, params: list[nn.Parameter], share: float) -> None:
        """Replace gradients by Σ share · gradient over all ranks.

        One flat exchange per dtype. A parameter without a gradient on any rank keeps None, as it
        would in one process.

        Parameters
        ----------
        params
            The trainable parameters, in the same order on all ranks.
        share
            This rank's part of all samples' weight; the shares add up to 1.
        """
        if self.alone:
            return
        zeros = share == 0  # whatever is there must not count, NaN included
        grads = [None if zeros else p.grad for p in params]
        used = torch.tensor([g is not None for g in grads], dtype=torch.float32)
        self.comm.allreduce_(used, "sum")
        kept = [i for i, count in enumerate(used.tolist()) if count]
        for p in params:
            p.grad = None
        for members, offsets in flat_groups([params[i] for i in kept]):
            group = [kept[i] for i in members]
            filled = [torch.zeros_like(params[i]) if (g := grads[i]) is None else g for i in group]
            flat = self.comm.allreduce_(pack(filled, FLAT_ALIGNMENT, share), "sum")
            for i, offset in zip(group, offsets, strict=True):
                p = params[i]
                p.grad = flat[offset : offset + p.numel()].view(p.shape)

    def gather_(self, whole: Tensor, bounds: list[tuple[int, int]], dim: int) -> None:
        """Fill `whole` on all ranks: rank r has the part ``bounds[r]`` along `dim`."""
        if self.alone:
            return
        for root, (begin, end) in enumerate(bounds):
            piece = whole.narrow(dim, begin, end - begin)
            rows = max(1, _PIECE_BYTES // max(1, piece[:1].numel() * piece.element_size()))
            for rows_piece in torch.split(piece, rows) if piece.numel() else ():
                rows_piece.copy_(self.comm.broadcast_(rows_piece.contiguous(), root))
