"""HDF5 files of all kinds that there are, to be damaged, and such as no honest program writes."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

__all__ = ["WHOLE", "WIDE"]

ARRAY = np.random.default_rng(0).standard_normal((20, 6, 3)).astype("f4")
WIDE = "all that it says"
"""In the names of files that are whole, but say that they hold more than any memory."""


def _contiguous(file: h5py.File) -> None:
    file["x"] = ARRAY
    file["g/y"] = ARRAY[:, :, :2]
    file["g/y"].attrs["unit"] = "V"
    file["g/names"] = ["one", "two"]
    file["n"] = 3


def _packed(file: h5py.File) -> None:
    options = {"chunks": (8, 4, 2), "compression": "gzip", "shuffle": True, "fletcher32": True}
    file.create_dataset("x", data=ARRAY, **options)
    file.create_dataset(
        "y", data=ARRAY, chunks=(20, 1, 3), compression="lzf", maxshape=(None, 6, 3)
    )
    file.create_dataset("z", data=(ARRAY * 9).astype(int), chunks=(5, 5, 2), scaleoffset=0)


def _kinds(file: h5py.File) -> None:
    """Write what is no array of numbers, and what links lead to."""
    file["x"] = ARRAY
    file["fixed"] = np.array([b"ab", b"cde"])
    file["texts"] = ["one", "three" * 20, ""]
    file["compound"] = np.zeros(3, [("a", "f4"), ("b", "i8")])
    file.create_dataset("references", data=np.array([file["x"].ref] * 2), dtype=h5py.ref_dtype)
    file.create_dataset("enum", data=[0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i2"))
    file.create_dataset("ragged", (2,), h5py.vlen_dtype("f4"))[0] = [1.0, 2.0]
    file["type"] = np.dtype("f8")
    file["empty"] = h5py.Empty("f4")
    file["opaque"] = np.zeros(2, "V5")
    file["complex"] = np.zeros(2, "c8")
    file["julia/nonarray/a"] = '[1, 2, (3, "b")]'


def _texts_of_julia(file: h5py.File) -> None:
    file["x"] = ARRAY
    file["nonarray/a"] = '[1, 2.5, (3, "b"), Dict("c" => [1 2; 3 4])]'
    file["nonarray/b"] = "-1e3"


def _saved(file: h5py.File) -> None:
    """Write what `h5save` writes."""
    file.attrs["fastseq"] = "file"
    part = file.create_group("list")
    part.attrs["fastseq"] = "tuple"
    for i in range(3):
        part[str(i)] = float(i)
    file["half"] = ARRAY.astype("u2")
    file["half"].attrs["fastseq"] = "bfloat16"
    file["tensor"] = ARRAY
    file["tensor"].attrs["fastseq"] = "tensor"


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((20, 6, 3), "f4")
    layout[:10] = h5py.VirtualSource(".", "part", (10, 6, 3))
    layout[10:] = h5py.VirtualSource("whole.h5", "x", (20, 6, 3))[:10]
    file["part"] = ARRAY[:10]
    file.create_virtual_dataset("x", layout, fillvalue=1)


def _links(file: h5py.File) -> None:
    file["x"] = ARRAY
    file["a"] = h5py.SoftLink("/b")
    file["b"] = h5py.SoftLink("/a")
    file["self"] = h5py.SoftLink("/")
    file["g/again"] = file["/"]
    file["g/x"] = file["x"]
    file["out"] = h5py.ExternalLink("whole.h5", "/x")
    file["gone"] = h5py.ExternalLink("outside/secret", "/x")
    file["loop"] = h5py.ExternalLink("hostile.h5", "/loop")


def _raw_elsewhere(file: h5py.File) -> None:
    file.create_dataset("x", (10, 6, 3), "u1", external=[("outside/secret", 0, 180)])
    file.create_dataset("y", (3,), "f8", external=[("nothing", 0, 24)])


def _huge(file: h5py.File) -> None:
    file.create_dataset("x", (10**15,), "f8", chunks=(1 << 16,), fillvalue=7)
    file.create_dataset("y", (10**6, 10**6, 10**3), "f4", chunks=(64, 64, 64))
    layout = h5py.VirtualLayout((10**9, 6, 3), "f4")
    layout[:10] = h5py.VirtualSource(".", "part", (10, 6, 3))
    file["part"] = ARRAY[:10]
    file.create_virtual_dataset("z", layout)


def _bombs(file: h5py.File) -> None:
    """Write chunks that unpack to far more than they say, and chunks of odd shapes."""
    x = file.create_dataset("x", (1024, 1, 1), "f4", chunks=(512, 1, 1), compression="gzip")
    x.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(30 << 20), 9))
    x.id.write_direct_chunk((512, 0, 0), zlib.compress(bytes(100), 9))
    y = file.create_dataset("y", (64, 6, 3), "f4", chunks=(8, 6, 3), compression="gzip")
    y.id.write_direct_chunk((0, 0, 0), bytes(7), filter_mask=1)
    file.create_dataset("z", (2, 2, 2), "f4", chunks=(2, 2, 2), compression="gzip")
    file.create_dataset("one", (3000, 1, 1), "i1", chunks=(1, 1, 1))


def _many(file: h5py.File) -> None:
    group = file
    for _ in range(60):
        group = group.create_group("g")
    group["x"] = 1
    for i in range(50):
        file[f"items/{i}"] = i


_MAKES: dict[str, tuple[Callable[[h5py.File], None], str | None]] = {
    "contiguous": (_contiguous, None), "packed": (_packed, None), "kinds": (_kinds, None),
    "julia": (_texts_of_julia, None), "saved": (_saved, None), "virtual": (_virtual, None),
    "links": (_links, None), "raw elsewhere": (_raw_elsewhere, None), "bombs": (_bombs, None),
    "many": (_many, None), f"huge, {WIDE}": (_huge, None), "latest": (_contiguous, "latest"),
    "latest, packed": (_packed, "latest"), "latest, links": (_links, "latest"),
}  # fmt: skip


def _whole() -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "outside").mkdir()
        Path(folder, "outside/secret").write_bytes(bytes(600))
        for name, (make, version) in _MAKES.items():
            path = Path(folder, "hostile.h5")
            with h5py.File(path, "w", libver=version) as file:
                make(file)
            found[name] = path.read_bytes()
    return found


WHOLE = _whole()
