"""A filter for HDF5 that changes nothing, and remembers which chunks it was asked to decode."""

from __future__ import annotations

import ctypes
from pathlib import Path

import h5py

NUMBER = 300  # of those that are free for tests

_Function = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)


class _Class(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_int),
        ("number", ctypes.c_int),
        ("encoder", ctypes.c_uint),
        ("decoder", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("function", _Function),
    ]


decoded: list[float] = []
"""The first element, a float64, of every chunk that was decoded."""


@_Function
def _remember(flags, _count, _values, size, _allocated, buffer):
    if flags & 0x0100:  # decoding
        decoded.append(ctypes.cast(buffer[0], ctypes.POINTER(ctypes.c_double))[0])
    return size


def _register() -> _Class:
    maps = Path("/proc/self/maps").read_text().split("\n")
    paths = {line.split()[-1] for line in maps if "libhdf5" in line}
    (path,) = (p for p in paths if Path(p).name.startswith(("libhdf5-", "libhdf5.", "libhdf5_se")))
    definition = _Class(1, NUMBER, 1, 1, b"counting", None, None, _remember)
    if ctypes.CDLL(path).H5Zregister(ctypes.byref(definition)) < 0:
        raise RuntimeError("HDF5 does not take the filter")
    return definition


_kept = _register()
assert h5py.h5z.filter_avail(NUMBER)
