"""Open HDF5 files of this process: one handle per file, shared by all its readers.

HDF5 refuses to open a file for writing that the same process has open for reading. Here the first
write reopens the handle for writing, and readers continue with the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import h5py

from .heaps import check_heaps
from .links import dead_link, walk_links
from .stored_chunks import StoredChunks
from .system_errors import item_of, raise_system_error
from .virtual import check_readable
from .virtual_parts import Part, virtual_parts

__all__ = ["SharedFile", "location", "open_file", "shared_file"]


def open_file(path: str, mode: str = "r") -> h5py.File:
    """Open an HDF5 file; for reading, also one that another process is writing to (SWMR).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    OSError
        There is no permission to read or write it, it is locked, or the system fails.
    ValueError
        It is not an HDF5 file, or is damaged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(errno.ENOENT, "there is no file", path)
    check_heaps(path)
    try:
        return h5py.File(path, mode)
    except OSError as error:
        if "already open for write" in str(error):
            return _open_swmr(path, mode, error)
        if "unable to lock file" in str(error):
            raise BlockingIOError(
                error.errno or errno.EAGAIN,
                "the file is locked: another process has it open for writing, or has it open while "
                "this one is to write; close it there, or, on a file system without locks, set "
                f"HDF5_USE_FILE_LOCKING=FALSE ({error})",
                path,
            ) from error
        if "already open for read-only" in str(error):
            raise BlockingIOError(
                errno.EBUSY,
                "cannot write to the file, as this process has it open for reading; close that "
                "h5py.File first, or open it with mode 'r+'",
                path,
            ) from error
        if isinstance(error, PermissionError):
            what = "read" if mode == "r" else "write"
            raise PermissionError(error.errno, f"no permission to {what} the file", path) from error
        raise_system_error(error, path)
        raise ValueError(f"{path} cannot be read as HDF5 ({error})") from error


def _open_swmr(path: str, mode: str, error: OSError) -> h5py.File:
    """Open a file that is marked as open for writing; `error` is HDF5's error on opening it."""
    with contextlib.suppress(OSError):
        if mode == "r":
            return h5py.File(path, "r", swmr=True)
    raise BlockingIOError(
        errno.EBUSY,
        "the file is marked as open for writing: another process writes to it, or ended before it "
        f"closed it; close it there, or run h5clear --status on it ({error})",
        path,
    ) from error


def location(item: h5py.Dataset | h5py.Group) -> tuple[str, str] | None:
    """Return the path and the name by which an open dataset or group can be reopened.

    Links are followed: the path is the file that holds it. None if there is no such path: the file
    is in memory, a Python object, in several pieces, or has been replaced.
    """
    file = item.file
    path = os.path.abspath(file.filename)
    if file.driver == "sec2":
        try:
            here, there = os.fstat(file.id.get_vfd_handle()), os.stat(path)
        except OSError:
            return None
        same = os.path.samestat(here, there)
    else:
        same = file.driver == "mpio" and os.path.isfile(path)
    name = _name_in(file, item) if same else None
    return (path, name) if name else None


def _name_in(file: h5py.File, item: h5py.Dataset | h5py.Group) -> str | None:
    """Return an object's name in its file; None if it has none, since it was deleted."""
    name: str | None = item.name  # for a link to a link to another file, the first link's name
    with contextlib.suppress(KeyError):
        if name and file.get(name) == item:
            return name
    found: str | None = file.visititems(lambda at, other: at if other == item else None)
    return found


def _find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of a file, after checking that it can be read.

    Raises
    ------
    ValueError
        There is no such dataset (the message lists those that exist), it is damaged, empty, or
        lacks sources, filters or raw data.
    """
    try:
        found = item_of(file, name)
        there = "" if isinstance(found, h5py.Dataset) else ", ".join(_datasets(file)) or "none"
        dead = dead_link(file, name)
    except (OSError, RuntimeError, KeyError) as error:
        raise_system_error(error, file.filename)
        raise ValueError(f"{file.filename} is damaged: {name!r} is not found ({error})") from error
    if dead is not None:
        raise ValueError(f"{name!r} in {file.filename} is {dead.text}")
    if there:
        what = "is a group" if found is not None else "is not there"
        raise ValueError(f"{name!r} {what} in {file.filename}; its datasets are: {there}")
    if found.shape is None:
        raise ValueError(
            f"{name!r} in {file.filename} is empty: it has a type, but no elements (a null "
            "dataspace)"
        )
    check_readable(found)
    return found


def _datasets(file: h5py.File) -> list[str]:
    return [
        f"{name} {item.shape}" for name, item in walk_links(file) if isinstance(item, h5py.Dataset)
    ]


class SharedFile:
    """A file that is opened on first use of a dataset, in the process that uses it.

    Attributes
    ----------
    writes
        How often it was held for writing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.writes: int = 0
        self.pid: int = os.getpid()
        self._lock = threading.RLock()
        self._file: h5py.File | None = None
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._datasets: dict[tuple[str, bool], h5py.Dataset] = {}
        self._chunks: dict[str, StoredChunks | None] = {}
        self._parts: dict[str, list[Part] | None] = {}

    @contextlib.contextmanager
    def dataset(
        self, name: str, *, writable: bool = False, cached: bool = True
    ) -> Iterator[h5py.Dataset]:
        """Hold a dataset of the file; no other thread reopens the file meanwhile.

        If not `cached`, HDF5 keeps none of its decompressed chunks.
        """
        with self._lock:
            file = self._opened(writable)
            if (name, cached) not in self._datasets:
                opened = _find_dataset(file, name)
                if not cached and opened.id.get_create_plist().get_nfilters():
                    del opened  # its cache would be shared by all handles of the dataset
                    opened = _without_cache(file, name)
                self._datasets[name, cached] = opened
            self.writes += writable
            yield self._datasets[name, cached]
            if writable:
                file.flush()

    def chunks(self, name: str, *, cached: bool = True) -> StoredChunks | None:
        """Return a dataset's chunks if they are decoded here; None: HDF5 does it."""
        with self.dataset(name, cached=cached) as dataset:
            if name not in self._chunks:
                self._chunks[name] = StoredChunks.of(dataset)
            return self._chunks[name]

    def parts(self, name: str, *, cached: bool = True) -> list[Part] | None:
        """Return the parts of a virtual dataset that are read one by one; None: HDF5 does it."""
        with self.dataset(name, cached=cached) as dataset:
            if name not in self._parts:
                self._parts[name] = virtual_parts(dataset)
            return self._parts[name]

    def locate(self, name: str) -> tuple[str, str]:
        """Return the path and the name of a dataset in the file that holds it, following links.

        If it is missing, or has no other name to open it by, return its path and name here.
        """
        with self._lock:
            file = self._opened()
            with contextlib.suppress(OSError, RuntimeError, KeyError):
                found = item_of(file, name)
                there = location(found) if isinstance(found, h5py.Dataset) else None
                if there is not None and not os.path.samefile(there[0], self.path):
                    return there
        return self.path, name

    def _opened(self, writable: bool = False) -> h5py.File:
        if writable and self._file is not None and self._file.mode == "r":
            self._close(self._file)
        if self._file is None:
            self._file = open_file(self.path, "r+" if writable else "r")
            self._identity = _identity(self.path)
            self._size = os.path.getsize(self.path)
        return self._file

    def release(self) -> None:
        """Close a file that is open for writing, which unlocks it; the next use reopens it."""
        with self._lock:
            if self._file is not None and self._file.mode != "r":
                self._close(self._file)

    def _close(self, file: h5py.File) -> None:
        self._datasets.clear()
        self._chunks.clear()
        self._parts.clear()
        self._file = None
        file.close()

    @property
    def replaced(self) -> bool:
        """Whether the path now leads to another file than the open one."""
        return self._identity is not None and self._identity != _identity(self.path)

    @property
    def truncated(self) -> bool:
        """Whether a file open for reading was truncated: HDF5 reads zeros past its end."""
        with self._lock:
            if self._file is None or self._file.mode != "r" or self.replaced:
                return False
            return os.path.getsize(self.path) < self._size

    def __del__(self) -> None:
        # A forked child that closed its parent's file would write to it, too.
        if self._file is not None and self.pid != os.getpid() and self._file.mode != "r":
            _of_parent.append((self._file, self._datasets))


def _without_cache(file: h5py.File, name: str) -> h5py.Dataset:
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


_of_parent: list[Any] = []
_shared: WeakValueDictionary[str, SharedFile] = WeakValueDictionary()
_lock = threading.Lock()


def shared_file(path: str) -> SharedFile:
    """Return this process's handle of a file; it is closed when no one holds it any more."""
    with _lock:
        place = os.path.realpath(path)  # links may lead to a file that is open
        file = _shared.get(place)
        if file is None or file.replaced:
            file = _shared[place] = SharedFile(path)
        return file


def _forget() -> None:
    """Reset in a forked child: the handles and the lock are its parent's."""
    global _shared, _lock
    _shared, _lock = WeakValueDictionary(), threading.Lock()


os.register_at_fork(after_in_child=_forget)
