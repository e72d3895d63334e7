"""HDF5 files: memory maps and lazy reading (`mapping`), saving, loading and joining."""

from .concat import h5concat
from .lazy import LazyDataset
from .lazy_tensor import LazyTensor
from .mapping import h5mmap
from .store import h5load, h5save

__all__ = ["LazyDataset", "LazyTensor", "h5concat", "h5load", "h5mmap", "h5save"]
