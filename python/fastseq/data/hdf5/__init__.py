"""HDF5 files: memory maps and lazy reading, saving, loading and joining."""

from .concat import h5concat
from .lazy_dataset import LazyDataset
from .lazy_tensor import LazyTensor
from .memory_map import h5mmap
from .save_load import h5load, h5save

__all__ = ["LazyDataset", "LazyTensor", "h5concat", "h5load", "h5mmap", "h5save"]


def __dir__() -> list[str]:
    return __all__
