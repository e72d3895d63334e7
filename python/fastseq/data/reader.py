"""Loads the next chunk while the current one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(load: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield ``(item, load(item))`` in order; a thread loads one item ahead, never more.

    What `load` raises is raised here, when its item is due. Closing the iterator ends the thread.

    Examples
    --------
    >>> list(read_ahead(lambda i: i * i, [1, 2, 3]))
    [(1, 1), (2, 4), (3, 9)]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fastseq-reader") as reader:
        pending = None
        for item in items:
            coming = item, reader.submit(load, item)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = coming
        if pending is not None:
            yield pending[0], pending[1].result()
