"""h5concat against np.concatenate, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq.data.hdf5 import copying
from fastseq.data.hdf5.virtual import check_readable, missing_sources

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (2, 3, 1)},
    "gzip": {"chunks": (3, 2, 2), "compression": "gzip", "shuffle": True},
}


def write(path, x, name="x", layout="contiguous"):
    options = dict(LAYOUTS[layout])
    if "chunks" in options:
        options["chunks"] = tuple(map(min, options["chunks"], np.maximum(x.shape, 1)))
        options["maxshape"] = (None,) * x.ndim
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=x, **options)


def values(rng, shape, dtype):
    return (rng.standard_normal(shape) * 50).astype(dtype)


@settings(max_examples=40)
@given(st.data())
def test_joins_as_numpy_does(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("join")
    draw = data.draw
    axis, virtual = draw(st.integers(0, 2)), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = [draw(st.integers(0, 7)) for _ in range(3)]
    arrays = []
    for i in range(draw(st.integers(1, 4))):
        shape[axis] = draw(st.integers(0, 7))
        dtype = draw(st.sampled_from(["f4", ">f4", "f8", "i2", "u1", "?", "<i8"]))
        arrays.append(values(rng, shape, dtype))
        layout = draw(st.sampled_from(sorted(LAYOUTS))) if 0 not in shape else "contiguous"
        write(folder / f"{i}.h5", arrays[-1], "g/x", layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_TILE_BYTES", draw(st.sampled_from([16, 100, 2**22])))
        patch.setattr(copying, "_CHUNKS_BYTES", draw(st.sampled_from([128, 2**22])))
        fs.h5concat(folder / "all.h5", str(folder / "?.h5"), axis, virtual=virtual, progress=False)
    expected = np.concatenate(arrays, axis)
    with h5py.File(folder / "all.h5") as file:
        found = file["g/x"]
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[()], expected)
        assert found.is_virtual == virtual
    if not virtual and expected.size:
        assert isinstance(fs.h5mmap(folder / "all.h5", "g/x"), np.memmap)
    shutil.rmtree(folder)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("chunks", [(7, 1, 1), (2, 2, 2), (1, 9, 4), None])
def test_tiles_that_lie_in_many_pieces(tmp_path, monkeypatch, axis, chunks):
    """In the target, where they are made of whole chunks; in the source, where rows are cut."""
    monkeypatch.setattr(copying, "_CHUNKS_BYTES", 8 * 40)
    monkeypatch.setattr(copying, "_TILE_BYTES", 8 * 10)
    arrays = np.arange(2 * 7 * 9 * 4.0).reshape(2, 7, 9, 4)
    for i in range(2):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("x", data=arrays[i], chunks=chunks)
    fs.h5concat(tmp_path / "all.h5", str(tmp_path / "?.h5"), axis, virtual=False)
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file["x"][()], np.concatenate(arrays, axis))


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (2, 1)])
def test_joins_along_two_axes(tmp_path, virtual, axes):
    rng = np.random.default_rng(0)
    sizes = {0: [3, 2], 1: [4, 1, 2], 2: [1, 3]}
    rows, names = [], []
    for i in sizes[axes[0]][:2]:
        rows.append([])
        names.append([])
        for j in sizes[axes[1]][:2]:
            shape = [5, 4, 2]
            shape[axes[0]], shape[axes[1]] = i, j
            rows[-1].append(values(rng, shape, "f4"))
            names[-1].append(tmp_path / f"{i}_{j}.h5")
            write(names[-1][-1], rows[-1][-1])
    fs.h5concat(tmp_path / "all.h5", names, axes, virtual=virtual)
    expected = np.concatenate([np.concatenate(row, axes[1]) for row in rows], axes[0])
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file["x"][()], expected)


def test_patterns_are_sorted_naturally_and_names_may_hold_anything(tmp_path):
    folder = tmp_path / "50%b [x]"
    folder.mkdir()
    for day in (10, 2, 1):
        write(folder / f"day{day}.h5", np.full((1, 1, 1), day), "a%0b")
    for virtual in (True, False):
        pattern = str(tmp_path / "50%b [[]x]" / "day*.h5")
        fs.h5concat(tmp_path / "all.h5", pattern, virtual=virtual)
        with h5py.File(tmp_path / "all.h5") as file:
            assert file["a%0b"][:, 0, 0].tolist() == [1, 2, 10]
            assert not missing_sources(file["a%0b"])
    fs.h5concat(tmp_path / "all.h5", [folder / "day10.h5", str(folder / "day1.h5")])
    with h5py.File(tmp_path / "all.h5") as file:
        assert file["a%0b"][:, 0, 0].tolist() == [10, 1]


def test_a_folder_with_a_virtual_file_may_be_moved(tmp_path, monkeypatch):
    (tmp_path / "a" / "parts").mkdir(parents=True)
    for i in range(2):
        write(tmp_path / "a" / "parts" / f"{i}.h5", np.full((2, 1, 1), i + 1.0))
    monkeypatch.chdir(tmp_path / "a")
    os.mkdir("joined")
    fs.h5concat("joined/all.h5", "parts/*.h5")
    shutil.move(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "b" / "joined" / "all.h5"
    assert np.asarray(fs.h5mmap(moved, "x"))[:, 0, 0].tolist() == [1, 1, 2, 2]
    os.symlink(tmp_path / "b" / "joined", tmp_path / "link")
    assert np.asarray(fs.h5mmap(tmp_path / "link" / "all.h5", "x"))[3, 0, 0] == 2
    # written through a link to a folder elsewhere, it holds as well
    fs.h5concat(tmp_path / "link" / "more.h5", "b/parts/*.h5")
    with h5py.File(tmp_path / "b" / "joined" / "more.h5") as file:
        assert file["x"][:, 0, 0].tolist() == [1, 1, 2, 2]


def test_missing_sources_are_named(tmp_path):
    for i in range(3):
        write(tmp_path / f"p{i}.h5", np.ones((2, 2, 1)))
    fs.h5concat(tmp_path / "all.h5", str(tmp_path / "p*.h5"))
    fs.h5concat(tmp_path / "twice.h5", [tmp_path / "all.h5"])  # virtual of virtual
    os.rename(tmp_path / "p1.h5", tmp_path / "q")
    for name in ("all.h5", "twice.h5"):
        with h5py.File(tmp_path / name) as file:
            assert missing_sources(file["x"]) == ["there is no file p1.h5"]
            with pytest.raises(ValueError, match=rf"'/x' in .*{name} is virtual.*no file p1\.h5"):
                check_readable(file["x"])
            if name == "all.h5":
                assert np.isnan(file["x"][2:4]).all()  # what HDF5 gives without asking
    with pytest.raises(ValueError, match=r"no file p1\.h5"):
        fs.h5concat(tmp_path / "new.h5", [tmp_path / "all.h5"], virtual=False)
    write(tmp_path / "p1.h5", np.ones((1, 2, 1)))
    with h5py.File(tmp_path / "all.h5") as file:
        assert (
            "shape (1, 2, 1)" in missing_sources(file["x"])[0]
            or "smaller" in (missing_sources(file["x"])[0])
        )
    with h5py.File(tmp_path / "p1.h5", "a") as file:
        file.move("x", "y")
    with h5py.File(tmp_path / "all.h5") as file:
        assert "no dataset 'x'" in missing_sources(file["x"])[0]
    (tmp_path / "p1.h5").write_bytes(b"nothing")
    with h5py.File(tmp_path / "all.h5") as file:
        assert "cannot be read as HDF5" in missing_sources(file["x"])[0]


@pytest.mark.parametrize("virtual", [True, False])
def test_what_is_kept_beside_what_is_joined(tmp_path, virtual):
    for i in range(2):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.attrs["by"] = f"writer {i}"
            file["train/x"] = np.full((2, 3, 1), i, "i4")
            file["train/x"].attrs["unit"] = "V"
            file["train"].attrs["rate"] = 50.0
            file["names"] = ["eins", "zwei"]
            file["scale"] = np.array([0.5, np.nan])
            file["one"] = 3
            file["z"] = np.array([1j, 2])
            file["names"].dims[0].label = "feature"
            file["scale"].make_scale("s")
            file["names"].dims[0].attach_scale(file["scale"])
    fs.h5concat(tmp_path / "all.h5", str(tmp_path / "?.h5"), 1, virtual=virtual)
    with h5py.File(tmp_path / "all.h5") as file:
        assert file["train/x"].shape == (2, 6, 1)
        assert dict(file["train/x"].attrs) == {"unit": "V"}
        assert file["train"].attrs["rate"] == 50
        assert file.attrs["by"] == "writer 0"
        assert file["names"].asstr()[:].tolist() == ["eins", "zwei"]
        assert "DIMENSION_LIST" not in file["names"].attrs
        np.testing.assert_array_equal(file["scale"][:], [0.5, np.nan])
        assert file["one"][()] == 3
        assert file["z"][0] == 1j


def bools(path, x):
    """As Julia stores them."""
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(x.shape)
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_B8.copy(), space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, x.astype("u1"), mtype=h5py.h5t.NATIVE_B8)


def test_julia_s_bools(tmp_path):
    x = np.random.default_rng(0).random((4, 3, 2)) < 0.5
    bools(tmp_path / "a.h5", x)
    write(tmp_path / "b.h5", ~x)
    for virtual in (True, False):
        fs.h5concat(tmp_path / "all.h5", [tmp_path / "a.h5", tmp_path / "b.h5"], virtual=virtual)
        with h5py.File(tmp_path / "all.h5") as file:
            assert file["x"].dtype == bool
            np.testing.assert_array_equal(file["x"][()], np.concatenate([x, ~x]))
    write(tmp_path / "c.h5", np.full((1, 3, 2), 0.5))
    both = [tmp_path / "a.h5", tmp_path / "c.h5"]
    with pytest.raises(TypeError, match=r"Bool from Julia.*virtual=False"):
        fs.h5concat(tmp_path / "all.h5", both)
    fs.h5concat(tmp_path / "all.h5", both, virtual=False)
    with h5py.File(tmp_path / "all.h5") as file:
        np.testing.assert_array_equal(file["x"][:4], x)
        assert file["x"][4, 0, 0] == 0.5


def test_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.h5", np.ones((2, 3, 1)))
    write("b.h5", np.ones((2, 4, 1)))
    write("c.h5", np.ones((2, 3, 1)))
    write("c.h5", np.ones(3), "w")
    write("s.h5", np.array([[["a"]]], "S1"))
    write("s2.h5", np.array([[["b"]]], "S1"))
    write("z.h5", np.ones((2, 3, 1), complex))
    write("flat.h5", np.ones(3))
    write("flat2.h5", np.zeros(3))
    h5py.File("empty.h5", "w").close()
    (tmp_path / "no.h5").write_bytes(b"x" * 999)
    before = sorted(os.listdir())

    def refused(error, match, *arguments, **options):
        with pytest.raises(error, match=match):
            fs.h5concat("all.h5", *arguments, **options)
        assert sorted(os.listdir()) == before

    refused(
        ValueError,
        r"'x' has the shapes \(2, 3, 1\) in .*a.h5 and \(2, 4, 1\) in .*b.h5",
        ["a.h5", "b.h5"],
    )
    refused(ValueError, r"a\.h5 has no 'w', which .*c\.h5 has", ["a.h5", "c.h5"])
    refused(ValueError, r"a\.h5 has no 'w', which .*c\.h5 has", ["c.h5", "a.h5"])
    refused(TypeError, "only numbers and booleans can be joined", ["s.h5", "s2.h5"])
    refused(TypeError, "complex128", ["a.h5", "z.h5"])
    refused(TypeError, "complex128", ["z.h5", "a.h5"])
    refused(ValueError, r"\(3,\) has no axis 1", ["flat.h5", "flat2.h5"], 1)
    refused(ValueError, "no dataset", ["empty.h5"])
    refused(ValueError, r"no\.h5 cannot be read", ["a.h5", "no.h5"])
    refused(FileNotFoundError, r"no file matches: 'part\*\.h5'", "part*.h5")
    refused(FileNotFoundError, r"there is no file: 'x\.h5'", ["x.h5"])
    refused(ValueError, "at least one file", [])
    refused(TypeError, "names of files, got list", [["a.h5"]])
    refused(TypeError, "list of lists", ["a.h5"], (0, 1))
    refused(ValueError, "axis must be", ["a.h5"], -1)
    refused(ValueError, "axis must be", ["a.h5"], (1, 1))
    refused(TypeError, "axis must be", ["a.h5"], "time")
    with pytest.raises(ValueError, match="itself among the sources"):
        fs.h5concat(tmp_path / "a.h5", ["a.h5", "c.h5"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        fs.h5concat("nowhere/all.h5", "a.h5")
    assert sorted(os.listdir()) == before


def test_bfloat16_is_not_mixed_with_integers(tmp_path):
    import torch

    fs.h5save(tmp_path / "a.h5", {"x": torch.ones(2, 1, 1, dtype=torch.bfloat16)})
    fs.h5save(tmp_path / "b.h5", {"x": torch.zeros(2, 1, 1, dtype=torch.bfloat16)})
    fs.h5concat(tmp_path / "all.h5", [tmp_path / "a.h5", tmp_path / "b.h5"], virtual=False)
    both = fs.h5load(tmp_path / "all.h5")["x"]
    assert both.dtype == torch.bfloat16
    assert both.flatten().tolist() == [1, 1, 0, 0]
    fs.h5save(tmp_path / "b.h5", {"x": np.zeros((2, 1, 1), np.uint16)})
    with pytest.raises(TypeError, match="bfloat16 in only one"):
        fs.h5concat(tmp_path / "all.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])


def in_process(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("room", [200_000, 1000])
def test_a_full_disk_leaves_the_old_file(tmp_path, room):
    """Where files may not grow beyond `room`, writing fails as on a full disk."""
    for i in range(2):
        write(tmp_path / f"p{i}.h5", np.ones((200, 100, 2)))
    (tmp_path / "all.h5").write_bytes(b"old")
    done = in_process(
        f"""
        import signal, resource, fastseq as fs
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
        for run in (
            lambda: fs.h5concat("all.h5", "p*.h5", virtual=False),
            lambda: fs.h5save("all.h5", {{"x": fs.h5mmap("p0.h5", "x")}}),
        ):
            try:
                run()
            except OSError as error:
                print(type(error).__name__, error)
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no space left for the new file") == 2, done.stdout + done.stderr
    assert done.stdout.count("all.h5") == 2
    assert (tmp_path / "all.h5").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["all.h5", "p0.h5", "p1.h5"]


def test_too_little_room_is_seen_first(tmp_path, monkeypatch):
    write(tmp_path / "p.h5", np.ones((10, 10, 1)))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage if folder else None)
    with pytest.raises(OSError, match="GB are needed"):
        fs.h5concat(tmp_path / "all.h5", [tmp_path / "p.h5"], virtual=False)
    assert os.listdir(tmp_path) == ["p.h5"]


@pytest.mark.parametrize(
    "shape",
    [
        (40, 50000, 8),
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in [(4000, 500, 8), (500000, 4, 8), (4, 4000000)]
        ),
    ],
)
def test_copying_takes_little_memory(tmp_path, shape):
    with h5py.File(tmp_path / "p.h5", "w") as file:  # allocated, not written: zeros
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)
    done = in_process(
        """
        import fastseq as fs
        def peak():
            with open("/proc/self/status") as status:
                return int(next(line for line in status if "VmHWM" in line).split()[1]) // 1024
        before = peak()
        fs.h5concat("all.h5", ["p.h5"] * 4, 1, virtual=False, progress=False)
        print(peak() - before)
        """,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # MB, of 256
    os.unlink(tmp_path / "all.h5")


def test_the_bar(tmp_path, monkeypatch, capsys):
    from fastseq.data.hdf5 import concat

    write(tmp_path / "p.h5", np.ones((10, 10, 1)))
    whole = concat.tqdm
    monkeypatch.setattr(concat, "tqdm", lambda **options: whole(**{**options, "delay": 0}))
    fs.h5concat(tmp_path / "all.h5", [tmp_path / "p.h5"], virtual=False)
    assert "800/800" in capsys.readouterr().err
    fs.h5concat(tmp_path / "all.h5", [tmp_path / "p.h5"], virtual=False, progress=False)
    assert not capsys.readouterr().err
