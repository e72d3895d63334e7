"""How near a time comes to what the machine could do at best.

The least time that work can take is that of its operations at the rate of a large product of
matrices, or that of its bytes at the rate of a copy, whichever is longer. Both rates are measured
on this machine, with as many threads: products by `torch.mm` of 1024 x 1024, copies by `copy_` of
about as many bytes as the work moves, for what fits the cache is copied faster than what doesn't.

A fraction above 1 is no error: kernels made for one shape, or for wider vectors than the library
takes on this machine, outrun `torch.mm`, and work may leave in the cache what a copy had to fetch.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

# A copy of less is call more than copy; one of more runs at the rate of this one.
SMALLEST_COPY, LARGEST_COPY = 2**16, 2**28


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done: arithmetic operations, and bytes that must be read and be written.

    Operations are those of matrix products, two for a multiplication and an addition.
    """

    operations: int
    bytes_moved: int
    dtype: torch.dtype = torch.float32


def fastest(call: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of the fastest of many calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


@functools.cache
def product_rate(dtype: torch.dtype, threads: int) -> float:
    """Return operations per second of `torch.mm`; `threads` says how many are set."""
    assert threads == torch.get_num_threads()
    n = 1024
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    out = torch.empty_like(a)
    return 2 * n**3 / fastest(lambda: torch.mm(a, b, out=out), 20)


@functools.cache
def copy_rate(size: int, threads: int) -> float:
    """Return bytes per second, read and written, of a copy that moves `size` bytes."""
    assert threads == torch.get_num_threads()
    source = torch.ones(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    return size / fastest(lambda: target.copy_(source), max(10, min(1000, 2**29 // size)))


def roofline(work: Work) -> dict[str, Any]:
    """Say how long `work` takes on this machine at the least, and what says so."""
    threads = torch.get_num_threads()
    size = 1 << max(work.bytes_moved - 1, 1).bit_length()
    copied = copy_rate(min(max(size, SMALLEST_COPY), LARGEST_COPY), threads)
    product = product_rate(work.dtype, threads)
    times = {"operations": work.operations / product, "bytes": work.bytes_moved / copied}
    return {
        "operations": work.operations,
        "bytes": work.bytes_moved,
        "product_gflop_per_s": product / 1e9,
        "copy_gb_per_s": copied / 1e9,
        "least_us": 1e6 * max(times.values()),
        "bound_by": max(times, key=times.__getitem__),
    }


def in_words(found: dict[str, Any]) -> str:
    """Put `roofline`'s findings into a line."""
    return (
        f"  roofline: {found['least_us']:.2f} by {found['bound_by']}, of "
        f"{found['operations'] / 1e6:.3g} million operations (torch.mm: "
        f"{found['product_gflop_per_s']:.0f} GF/s) and {found['bytes'] / 1e6:.3g} MB (copy_: "
        f"{found['copy_gb_per_s']:.0f} GB/s)"
    )
