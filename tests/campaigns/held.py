"""What a process holds: memory, Python's objects, files, threads and child processes."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

__all__ = ["ALLOWED", "Held", "check_steady"]

# What may be more after many operations than before: what grows once, and later than at first, such
# as tables that double, buffers of the allocator, and rows of a history.
ALLOWED = {
    "bytes": 2**16,
    "objects": 64,
    "blocks": 1024,
    "resident": 2**23,
    "files": 0,
    "threads": 0,
    "processes": 0,
    "temporary": 0,
}


class _Malloc(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Malloc


class Held:
    """What this process holds now.

    Attributes
    ----------
    amounts
        ``bytes``: given out by the C allocator; ``blocks``: by Python's; ``objects``: those that
        Python's collector knows; ``resident``: bytes of memory in use; ``files``: open descriptors;
        ``threads``, of any language; ``processes``: children; ``temporary``: files in the folder for
        them.
    kinds
        How many objects of each type.
    """

    def __init__(self) -> None:
        gc.collect()
        status = Path("/proc/self/status").read_text().splitlines()
        lines = dict(line.split(":", 1) for line in status)
        self.amounts: dict[str, int] = {
            "threads": int(lines["Threads"]),
            "resident": int(lines["VmRSS"].split()[0]) * 1024,
            "files": len(os.listdir("/proc/self/fd")),
            "processes": len(_children()),
            "temporary": len(os.listdir(tempfile.gettempdir())),
            "blocks": sys.getallocatedblocks(),
        }
        found = gc.get_objects()
        self.amounts["objects"] = len(found)
        self.kinds: Counter[str] = Counter(type(one).__qualname__ for one in found)
        del found
        malloc = _mallinfo2()
        self.amounts["bytes"] = malloc.uordblks + malloc.hblkhd


def _children() -> list[str]:
    tasks = Path("/proc/self/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def check_steady(
    operate: Callable[[int], object], warm: int, count: int, **allowed: int
) -> dict[str, int]:
    """Call `operate` with numbers, and raise if the process holds more after them.

    Parameters
    ----------
    operate
        What is done.
    warm
        How often before the first measurement.
    count
        How often between the first and the last.
    **allowed
        Instead of `ALLOWED`.

    Returns
    -------
    dict
        What has grown, and by how much.
    """
    # A folder of its own, where no other process writes.
    tempfile.tempdir = str(Path.cwd() / "temporary")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    try:
        return _steady(operate, warm, count, {**ALLOWED, **allowed})
    finally:
        tempfile.tempdir = None


def _steady(
    operate: Callable[[int], object], warm: int, count: int, most: dict[str, int]
) -> dict[str, int]:
    for number in range(warm):
        operate(number)
    Held()  # what it allocates once
    before = Held()
    for number in range(warm, warm + count):
        operate(number)
    after = Held()
    grown = {name: after.amounts[name] - n for name, n in before.amounts.items()}
    over = {name: n for name, n in grown.items() if n > most[name]}
    if over:
        kinds = (after.kinds - before.kinds).most_common(8)
        names = [thread.name for thread in threading.enumerate()]
        raise AssertionError(f"{count} calls: {over} too much; {grown}; {kinds}; {names}")
    return grown
