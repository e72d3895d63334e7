"""Ranks that work together: `world`, what they exchange, and gradients averaged over them."""

from .bucketizer import Averaged, Bucketizer
from .communicators import Communicator, communicator, mpi_library, world

__all__ = ["Averaged", "Bucketizer", "Communicator", "communicator", "mpi_library", "world"]
