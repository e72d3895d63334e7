"""Ranks that work together: `world`, communicators, and gradients averaged over ranks."""

from .bucketizer import Averaged, Bucketizer
from .communicators import Communicator, communicator, mpi_library, world
from .launching import launch

__all__ = [
    "Averaged",
    "Bucketizer",
    "Communicator",
    "communicator",
    "launch",
    "mpi_library",
    "world",
]


def __dir__() -> list[str]:
    return __all__
