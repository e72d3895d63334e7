"""The errors that fastseq raises besides `ValueError` and `TypeError`."""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CheckpointError",
    "CommunicationError",
    "DivergedError",
    "FastseqError",
    "MissingFeatureError",
    "NonFiniteError",
    "ReadError",
    "RemoteError",
]


def __dir__() -> list[str]:
    return __all__


class FastseqError(Exception):
    """Base of fastseq's own errors."""


class BusyError(FastseqError, RuntimeError):
    """Another thread trains the model that this one needs."""


class CheckpointError(FastseqError, ValueError):
    """A file is not a checkpoint, incomplete, or of something else; the message says which."""


class NonFiniteError(FastseqError, FloatingPointError):
    """The loss became NaN or infinite; the message names epoch, block and chunk."""


class DivergedError(NonFiniteError):
    """The loss or a gradient became NaN or infinite while the weights were trained."""


class ReadError(FastseqError, OSError):
    """Data could not be read: a file became shorter, changed while it was read, or failed.

    Attributes
    ----------
    index
        Which read of the request failed.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class CommunicationError(FastseqError, RuntimeError):
    """The ranks could not communicate, or were about to do different things."""


class MissingFeatureError(FastseqError, ImportError):
    """fastseq was built without what this call needs; the message says how to get it."""


class RemoteError(FastseqError, RuntimeError):
    """Another rank has failed.

    Attributes
    ----------
    rank
        The lowest rank that failed.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(rank, message)
        self.rank = rank
        self.message = message

    def __str__(self) -> str:
        return f"rank {self.rank} failed: {self.message}"
