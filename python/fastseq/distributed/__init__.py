"""Ranks that work together: `world`, communicators, and gradients averaged over ranks."""

from .bucketizer import Averaged, Bucketizer
from .communicators import Communicator, communicator, mpi_library, world

__all__ = ["Averaged", "Bucketizer", "Communicator", "communicator", "mpi_library", "world"]
