"""HDF5 files: mapped and read lazily (`mapping`)."""

from .mapping import LazyDataset, h5mmap

__all__ = ["LazyDataset", "h5mmap"]
