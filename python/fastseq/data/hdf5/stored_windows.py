"""Reading chunked and compressed HDF5 datasets in the order of training."""

from __future__ import annotations

import copy
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from ..._util.threads import Thread
from ..spare_cores import SpareCores
from .stored_rows import StoredRows

__all__ = ["ChunkedDataset", "WindowReader"]

Block = tuple[int, int, int, int]  # t0, t1, n0, n1

_WINDOW_BYTES = 2**24  # unless boxes or rows of chunks are larger; also the size of one read


class ChunkedDataset(Protocol):
    """What windows are read from; see `LazyDataset`."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    starts: tuple[int, ...]
    cached: bool

    @property
    def ndim(self) -> int:
        """The number of dimensions."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return a box, which is not read yet."""

    def rows(self) -> StoredRows:
        """Return its rows of chunks along time."""


class WindowReader:
    """Read boxes ``[t0:t1, n0:n1]`` of a dataset that advance in time, then jump to other n.

    HDF5 chunks are decompressed into a window, which holds whole rows of chunks for exactly the
    wanted sequences; boxes are cut out of it. A separate thread fills the next window meanwhile. So
    a chunk is decompressed once per block, for any `seqsize`.

    To be used by one thread at a time. Can be pickled, and works in a forked child; windows are
    not kept.

    Parameters
    ----------
    dataset
        The dataset, of two or more dimensions.
    max_bytes
        Memory for the current and the next window together. If two don't fit, the next one is not
        read ahead; if a single row of chunks does not fit, its chunks are decompressed several
        times, with a warning.
    spare
        The cores on which chunks may be decompressed. It is not pickled.

    Examples
    --------
    >>> import h5py, os, tempfile
    >>> import fastseq as fs
    >>> path = os.path.join(tempfile.mkdtemp(), "data.h5")
    >>> with h5py.File(path, "w") as file:
    ...     x = np.arange(24.0).reshape(6, 4, 1)
    ...     _ = file.create_dataset("x", data=x, chunks=(4, 2, 1), compression="gzip")
    >>> reader = WindowReader(fs.h5mmap(path, "x"))
    >>> reader.read(3, 6, 0, 2)[..., 0].tolist()
    [[12.0, 13.0], [16.0, 17.0], [20.0, 21.0]]
    >>> reader.close()
    """

    def __init__(
        self,
        dataset: ChunkedDataset,
        max_bytes: int = 2**28,
        spare: SpareCores | None = None,
    ) -> None:
        if dataset.ndim < 2:
            raise ValueError(
                f"{dataset!r} must have at least two dimensions, time steps and sequences"
            )
        self.dataset: ChunkedDataset = copy.copy(dataset)
        self.dataset.cached = False  # windows keep what is needed again
        self.max_bytes = max_bytes
        self._spare = spare or SpareCores()
        self._warned = self._closed = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._rows: StoredRows | None = None
        self._current: _Window | None = None
        self._ahead: _Window | None = None
        self._free_buffer: np.ndarray | None = None
        self._blocks: Iterator[Block] = iter(())
        self._block: Block | None = None  # the next of them

    def expect(self, blocks: Iterable[Block]) -> None:
        """Announce the blocks ``(t0, t1, n0, n1)`` that will be read, in order.

        Then a block's first window is read ahead too, and nothing past its `t1`. Otherwise blocks
        are assumed to reach to the last time step. Reads may deviate from the announcement.
        """
        self._blocks = (b for b in blocks if b[0] < b[1] and b[2] < b[3])
        self._block = next(self._blocks, None)

    def read(self, t0: int, t1: int, n0: int, n1: int) -> np.ndarray:
        """Return time steps ``[t0, t1)`` of sequences ``[n0, n1)``; valid until the next read.

        Raises
        ------
        ReadError
            They cannot be read; the message names file, dataset and box.
        ValueError
            The reader is closed, or the dataset has changed since it was mapped.
        """
        if self._closed:
            raise ValueError("the reader is closed")
        if self._pid != os.getpid():
            self._begin_anew()  # windows and threads were the parent's
        shape = self.dataset.shape
        if not (0 <= t0 <= t1 <= shape[0] and 0 <= n0 <= n1 <= shape[1]):
            raise IndexError(f"[{t0}:{t1}, {n0}:{n1}] is not inside {self.dataset!r}")
        box = (t1 - t0, n1 - n0, *shape[2:])
        if not math.prod(box):
            return np.empty(box, self.dataset.dtype)
        window = self._move_to(t0, n0, n1, t1 - t0)
        if t1 <= window.t1:
            return window.data[t0 - window.t0 : t1 - window.t0]
        out, t = np.empty(box, self.dataset.dtype), t0
        while t < t1:
            window = self._move_to(t, n0, n1, t1 - t0)
            end = min(t1, window.t1)
            out[t - t0 : end - t0] = window.data[t - window.t0 : end - window.t0]
            t = end
        return out

    def close(self) -> None:
        """Stop reading ahead and free the windows; nothing can be read afterwards."""
        self._closed = True
        if self._ahead is not None and self._pid == os.getpid():
            self._ahead.cancel()
        self._begin_anew()

    def __getstate__(self) -> dict[str, object]:
        return {"dataset": self.dataset, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WindowReader.__init__(self, **state)

    def _move_to(self, t: int, n0: int, n1: int, steps: int) -> _Window:
        """Return the filled window that holds time step `t`; start reading the next one."""
        last = self._current
        if last is not None and last.covers(t, n0, n1):
            return last
        if last is not None:
            self._current, self._free_buffer = None, last.buffer
        window, self._ahead = self._ahead, None
        if window is not None and not window.covers(t, n0, n1):
            window.cancel()
            self._free_buffer, window = window.buffer, None
        if window is None:
            if last is not None and (last.t1, last.n0, last.n1) == (t, n0, n1) and t < last.end:
                end = last.end  # the block continues
            else:
                end = self._end(t, n0, n1)
            # The caller waits for this window: only what is needed now. Later ones are larger. But
            # what is read on all cores, while all wait, is read much at a time.
            much = 0 if self._spare.some() else _WINDOW_BYTES // self._step_bytes(n1 - n0)
            window = self._plan(t, n0, n1, max(steps, much), end, self.max_bytes)
            assert window is not None
        if not window.started:
            self._spare.wait()
        window.wait()
        self._current = window
        self._prefetch(window, steps)
        return window

    def _end(self, t: int, n0: int, n1: int) -> int:
        """Return where the block that starts here ends: known if it is the expected one."""
        block = self._block
        if block is None or block[2:] != (n0, n1) or not block[0] <= t < block[1]:
            return self.dataset.shape[0]
        self._block = next(self._blocks, None)
        return block[1]

    def _prefetch(self, window: _Window, steps: int) -> None:
        """Start reading the window after `window`, if it is known, and there are room and cores."""
        if not self._spare.some():
            return
        following = (window.t1, window.end, window.n0, window.n1)
        if window.t1 == window.end:
            if self._block is None:
                return
            following = self._block
            self._block = next(self._blocks, None)
        t, end, n0, n1 = following
        room = self.max_bytes - window.buffer.nbytes
        twice = min(2 * (window.t1 - window.t0), _WINDOW_BYTES // self._step_bytes(n1 - n0))
        self._ahead = self._plan(t, n0, n1, max(steps, twice), end, room)
        if self._ahead is not None:
            self._ahead.start()

    def _plan(self, t: int, n0: int, n1: int, wanted: int, end: int, room: int) -> _Window | None:
        """Return the window to read from `t` on, or None if there is no `room` for it."""
        step_bytes = self._step_bytes(n1 - n0)
        t1 = self._window_end(t, n0, n1, wanted, end, step_bytes)
        size = (t1 - t) * step_bytes
        if size > room and room < self.max_bytes:
            return None
        buffer, self._free_buffer = self._free_buffer, None
        if buffer is None or not size <= buffer.nbytes <= room:
            buffer = np.empty(size, np.uint8)
        data = buffer[:size].view(self.dataset.dtype)
        data = data.reshape(t1 - t, n1 - n0, *self.dataset.shape[2:])
        cuts = [t]
        while cuts[-1] < t1:
            piece = max(_WINDOW_BYTES // step_bytes, 1)
            cuts.append(min(self._boundary(cuts[-1] + piece, n0, n1), t1))
        return _Window(self.dataset, n0, n1, end, cuts, buffer, data, self._spare.threads)

    def _window_end(self, t: int, n0: int, n1: int, wanted: int, end: int, step_bytes: int) -> int:
        """Return the end of a window from `t` on: after whole rows of chunks if they fit."""
        row = self._boundary(t + 1, n0, n1) - t
        most = self.max_bytes // 2 // step_bytes
        wanted = min(wanted, most)
        t1 = min(self._boundary(t + max(wanted - row, 0) + 1, n0, n1), end)
        if t1 - t > most:
            t1 = min(t + row, end)
        if (t1 - t) * step_bytes <= self.max_bytes or t1 == t + 1:
            return t1
        if not self._warned:
            self._warned = True
            self._warn(
                f"compressed chunks are {t1 - t} steps long, which takes "
                f"{(t1 - t) * step_bytes / 2**20:.0f} MB for {n1 - n0} sequences, more than the "
                f"{self.max_bytes / 2**20:.0f} MB that are kept: chunks are decompressed several "
                "times; choose a smaller batchsize, or store chunks of fewer steps"
            )
        return min(t + max(self.max_bytes // step_bytes, 1), end)

    def _warn(self, text: str) -> None:
        name, path = self.dataset.name, self.dataset.path
        warnings.warn(f"reading {name!r} of {path}: {text}", stacklevel=2)

    def _step_bytes(self, sequences: int) -> int:
        return sequences * math.prod(self.dataset.shape[2:]) * self.dataset.dtype.itemsize

    def _boundary(self, t: int, n0: int, n1: int) -> int:
        if self._rows is None:
            self._rows = self.dataset.rows()
            data_bytes = self.dataset.shape[0] * self._step_bytes(self.dataset.shape[1])
            if self._rows.width >= 2 * (n1 - n0) and data_bytes > self.max_bytes:
                self._warn(
                    f"compressed chunks hold {self._rows.width} sequences, of which {n1 - n0} are "
                    "read at a time: every chunk is decompressed again for the others; choose a "
                    "larger batchsize, or store chunks of fewer sequences"
                )
        first, shift = self.dataset.starts[:2]
        return self._rows.boundary(first + t, shift + n0, shift + n1) - first


class _Window:
    """Time steps ``[t0, t1)`` of sequences ``[n0, n1)``, of a block up to `end`."""

    def __init__(
        self,
        dataset: ChunkedDataset,
        n0: int,
        n1: int,
        end: int,
        cuts: list[int],
        buffer: np.ndarray,
        data: np.ndarray,
        threads: Callable[[], int],
    ) -> None:
        self.t0, self.t1, self.n0, self.n1, self.end = cuts[0], cuts[-1], n0, n1, end
        self.buffer = buffer
        self.data = data
        self._dataset = dataset
        self._cuts = cuts
        self._stopped = False
        self._threads = threads
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def covers(self, t: int, n0: int, n1: int) -> bool:
        return self.t0 <= t < self.t1 and (self.n0, self.n1) == (n0, n1)

    def start(self) -> None:
        """Fill the window in another thread."""
        self._thread = Thread(self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.fill()
        except BaseException as error:  # raised where the window is waited for
            self._error = error

    def fill(self) -> None:
        for t0, t1 in itertools.pairwise(self._cuts):
            if self._stopped:
                return
            piece = self.data[t0 - self.t0 : t1 - self.t0]
            self._dataset[t0:t1, self.n0 : self.n1].read_into(piece, self._threads)

    @property
    def started(self) -> bool:
        return self._thread is not None

    def wait(self) -> None:
        """Return when it is filled, if need be by this thread."""
        if self._thread is None:
            self.fill()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        self._stopped = True
        if self._thread is not None:
            self._thread.join()
