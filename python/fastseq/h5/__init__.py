"""HDF5 files: mapped and read lazily (`mapping`)."""

from .concat import h5concat
from .lazy import LazyDataset
from .mapping import h5mmap
from .store import h5load, h5save

__all__ = ["LazyDataset", "h5concat", "h5load", "h5mmap", "h5save"]
