"""Parquet files and Arrow tables in long form: the same sequences as pandas finds in them."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
from decimal import Decimal
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.data.tables import row_reader, table_source

SPEC = {"epochs": 2, "batchsize": 5, "seqsize": 7}


def frame(count=23, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    total = lengths.sum()
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"s{i}" for i in rng.permutation(count)], lengths),
            "ds": np.concatenate([pd.date_range("2024", periods=n, freq="h") for n in lengths]),
            "a": rng.standard_normal(total).astype(np.float32),
            "b": rng.integers(0, 9, total, dtype=np.int16),
            "y": rng.standard_normal(total).astype(np.float32),
        }
    )


def expected(rows, columns):
    """Return what pandas makes of a frame: ids and arrays."""
    groups = rows.groupby("unique_id", sort=False, observed=True)
    return {key: group[columns].to_numpy() for key, group in groups}


def assert_same(table, rows, columns):
    want = expected(rows, columns)
    assert table.keys == list(want)
    assert table.lengths.tolist() == list(map(len, want.values()))
    for got, array in zip(table, want.values(), strict=True):
        np.testing.assert_array_equal(got, array)


def estimator(**more):
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.LSTM(2, 4), nn.Linear(4, 1))
    return fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.SGD, {**SPEC, **more}, progress=False
    )


@pytest.fixture
def stored(tmp_path):
    rows = frame()
    path = tmp_path / "rows.parquet"
    rows.to_parquet(path, index=False, row_group_size=17)
    return rows, path


# What sequences a table has


KINDS = {
    "text": lambda ids: pa.array([f"id {i}" for i in ids]),
    "large text": lambda ids: pa.array([f"id {i}" for i in ids], pa.large_string()),
    "categories": lambda ids: pa.array([f"id {i}" for i in ids]).dictionary_encode(),
    "int64": lambda ids: pa.array(ids, pa.int64()),
    "uint8": lambda ids: pa.array(ids, pa.uint8()),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tables_are_what_pandas_finds(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    ids = data.draw(st.permutations(range(len(lengths))))
    total = sum(lengths)
    unit = data.draw(st.sampled_from(["s", "ms", "us", "ns"]))
    times = np.concatenate([np.arange(n) * 3 for n in lengths])
    numbers = st.floats(-1e3, 1e3, width=32) | st.none()
    table = pa.table(
        {
            "x": pa.array(
                data.draw(st.lists(numbers, min_size=total, max_size=total)), pa.float32()
            ),
            "unique_id": KINDS[data.draw(st.sampled_from(list(KINDS)))](np.repeat(ids, lengths)),
            "ds": pa.array(times, pa.timestamp(unit, data.draw(st.sampled_from([None, "UTC"])))),
            "n": pa.array(np.arange(total), pa.int32()),
        }
    )
    columns = data.draw(st.sampled_from([["x"], ["n"], ["n", "x"], ["x", "n"]]))
    rows = table.to_pandas()
    assert_same(fs.LongTable(table, columns), rows, columns)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=3)))
    folder = tmp_path_factory.mktemp("files")
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, total], strict=True), 8):
        size = data.draw(st.integers(1, 10))
        pq.write_table(table[begin:end], folder / f"{number}.parquet", row_group_size=size)
    found = fs.LongTable(folder / "*.parquet", columns)
    assert_same(found, rows, columns)
    order = data.draw(st.permutations(range(len(found))))
    want = list(expected(rows, columns).values())
    for i in order:
        np.testing.assert_array_equal(found[i], want[i])


def test_sources(tmp_path):
    rows = frame()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    paths = [tmp_path / f"{name}.parquet" for name in (2, 10)]
    for path, part in zip(paths, (table[:100], table[100:]), strict=True):
        pq.write_table(part, path)
    sources = [
        table, ds.dataset(table), ds.dataset(list(map(str, paths))), paths,
        str(tmp_path / "*.parquet"), [str(tmp_path / "2.*"), paths[1]],
    ]  # fmt: skip
    for source in sources:
        assert_same(fs.LongTable(source, ["a", "y"]), rows, ["a", "y"])


def test_a_table_is_a_sequence(stored):
    rows, path = stored
    table = fs.LongTable(path, ["a", "b"])
    want = list(expected(rows, ["a", "b"]).values())
    assert len(table) == 23
    np.testing.assert_array_equal(table[-1], want[-1])
    part = table[3:9:2]
    assert part.keys == table.keys[3:9:2]
    np.testing.assert_array_equal(part[1], want[5])
    with pytest.raises(IndexError, match="23 sequences, got the index 23"):
        table[23]
    table[0][:] = 7  # a copy
    np.testing.assert_array_equal(table[0], want[0])
    assert repr(part) == (
        f"LongTable(3 sequences of ['a', 'b'], {sum(map(len, want[3:9:2]))} time steps, float32)"
    )


@pytest.mark.parametrize(
    ("times", "kind"),
    [
        ([1, 2, 3], pa.date32()), ([86400000, 2 * 86400000, 3 * 86400000], pa.date64()),
        ([-100, 0, 100], pa.int8()), ([0, 2**63, 2**64 - 1], pa.uint64()),
        ([-0.5, 0.0, 0.5], pa.float32()),
    ],
)  # fmt: skip
def test_times(times, kind):
    columns = {"unique_id": ["a"] * 3, "ds": pa.array(times, kind), "x": [1.0, 2.0, 3.0]}
    table = pa.table(columns)
    assert fs.LongTable(table, "x")[0].tolist() == [[1], [2], [3]]
    with pytest.raises(ValueError, match="the times of 'a' must increase"):
        fs.LongTable(table.take([0, 2, 1]), "x")


def test_a_sequence_may_continue_in_a_file_with_another_unit_of_time(tmp_path):
    for number, (unit, times) in enumerate((("s", [1, 2]), ("ms", [2900, 4000]))):
        columns = {"unique_id": ["a"] * 2, "ds": pa.array(times, pa.timestamp(unit)), "x": [1, 2]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    assert fs.LongTable(tmp_path / "*.parquet", "x").lengths.tolist() == [4]
    with pytest.raises(ValueError, match=r"must increase, but .*00:00:01 in row 0 of .*0.parquet"):
        fs.LongTable([tmp_path / "1.parquet", tmp_path / "0.parquet"], "x")


# What columns become


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        (pa.array([True, False]), np.bool_, [True, False]),
        (pa.array([True, None]), np.float32, [1, np.nan]),
        (pa.array([1, 2], pa.int8()), np.int8, [1, 2]),
        (pa.array([1, None], pa.int8()), np.float32, [1, np.nan]),
        (pa.array([1, None], pa.int64()), np.float64, [1, np.nan]),
        (pa.array([1, 2**64 - 1], pa.uint64()), np.uint64, [1, 2**64 - 1]),
        (pa.array(np.array([1, 2], np.float16)), np.float16, [1, 2]),
        (pa.array([1.5, None], pa.float32()), np.float32, [1.5, np.nan]),
        (pa.array([Decimal("1.25"), None]), np.float64, [1.25, np.nan]),
        (pa.array([2.5, 2.5]).dictionary_encode(), np.float64, [2.5, 2.5]),
        (pa.nulls(2), np.float32, [np.nan, np.nan]),
    ],
    ids=str,
)
@pytest.mark.parametrize("statistics", [True, False])
def test_columns_become(tmp_path, column, dtype, values, statistics):
    table = pa.table({"unique_id": ["a", "a"], "ds": [1, 2], "x": column})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, write_statistics=statistics)
    for source in (table, path):
        found = fs.LongTable(source, "x")
        assert found.dtype == found[0].dtype == dtype
        np.testing.assert_array_equal(found[0][:, 0], np.array(values, dtype))


def test_nulls_in_a_dictionary_of_numbers():
    column = pa.DictionaryArray.from_arrays([0, 1], pa.array([3, None]))
    table = fs.LongTable(pa.table({"unique_id": ["a", "a"], "ds": [1, 2], "x": column}), "x")
    np.testing.assert_array_equal(table[0], [[3], [np.nan]])


def test_columns_of_several_types_have_the_dtype_of_numpy(tmp_path):
    rows = {"unique_id": ["a"], "ds": [1], "b": [True]}
    for number, kind in enumerate(("int8", "int16")):
        table = pa.table({**rows, "i": pa.array([3], kind), "f": pa.array([0.5], "float")})
        pq.write_table(table.set_column(1, "ds", [[number]]), tmp_path / f"{number}.parquet")
    source = tmp_path / "*.parquet"
    assert fs.LongTable(source, ["b", "i"]).dtype == np.int16
    table = fs.LongTable(source, ["f", "i", "b"])
    assert table.dtype == np.float32
    assert table[0].tolist() == [[0.5, 3, 1]] * 2


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["u", "v"], "'x' of the table must hold numbers, but holds string: number its values"),
        (pa.array(["u", "v"]).dictionary_encode(), "holds dictionary<.*: number its values"),
        (pa.array([1, 2], pa.timestamp("s")), r"holds timestamp\[s\]: make numbers of it"),
        (pa.array([1, 2], pa.duration("s")), r"holds duration\[s\]: make numbers of it"),
        ([[1], [2]], "holds list<.*: make a column of each of its parts"),
        ([{"u": 1}, {"u": 2}], "holds struct<.*: make a column of each of its parts"),
        ([b"u", b"v"], "holds binary: convert it"),
    ],
    ids=str,
)
def test_columns_without_numbers_are_refused(column, message):
    with pytest.raises(TypeError, match=message):
        fs.LongTable(pa.table({"unique_id": ["a", "a"], "ds": [1, 2], "x": column}), "x")


# What is refused


def rows_of(ids, times, **more):
    return pa.table({"unique_id": ids, "ds": times, "x": np.arange(float(len(ids))), **more})


@pytest.mark.parametrize(
    ("table", "columns", "error", "message"),
    [
        (rows_of(["a", "b", "a"], [1, 1, 2]), "x", ValueError,
         r"rows of 'a' must follow each other, but row 2 of the table comes after rows of 'b': "
         r"sort the rows, such as by df.sort_values\(\['unique_id', 'ds'\]\)"),
        (rows_of(["a", "b", "b"], [1, 2, 1]), "x", ValueError,
         "times of 'b' must increase, but 1 in row 2 of the table comes after 2: sort the rows"),
        (rows_of(["a", "b", "b"], [1, 1, 1]), "x", ValueError,
         "'b' has two rows of the time 1, the second is row 2 of the table: keep one"),
        (rows_of(["a", None], [1, 2]), "x", ValueError,
         "each row must have an id, but row 1 of the table has none in 'unique_id'"),
        (rows_of(pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None])), [1, 2]), "x",
         ValueError, "each row must have an id, but row 1 of"),
        (rows_of(["a", "a"], [1, None]), "x", ValueError, "must have a time, but row 1 of the"),
        (rows_of(["a", "a"], [1, np.nan]), "x", ValueError, "must have a time, but row 1 of the"),
        (rows_of([], []).cast(rows_of(["a"], [1]).schema), "x", ValueError, "has no rows"),
        (rows_of(["a"], [1]), "xs", ValueError,
         "no column 'xs', but 'unique_id', 'ds', 'x': did you mean \"x\""),
        (rows_of(["a"], [1]).drop_columns("ds"), "x", ValueError, "has no column 'ds'"),
        (rows_of(["a"], [1]).append_column("x", [[1]]), "x", ValueError, "has 2 columns 'x'"),
        (rows_of(["a"], [1]), [], ValueError, "at least one column"),
        (rows_of(["a"], [1]), ["x", "x"], ValueError, "must be different ones, got 'x' twice"),
        (rows_of(["a"], [1]), 3, TypeError, "columns must be names of columns, got 3"),
        (rows_of([0.5], [1]), "x", TypeError, "ids in 'unique_id' of the table must be text or int"),
        (rows_of(["a"], ["2024"]), "x", TypeError, "but are string: .* pandas.to_datetime"),
        (frame(), "a", TypeError, r"got DataFrame: pass pyarrow.table\(…\) of it"),
        ([], "x", ValueError, "got an empty list"),
        (3, "x", TypeError, "names of Parquet files, .* got int"),
    ],
)  # fmt: skip
def test_refused(table, columns, error, message):
    with pytest.raises(error, match=message):
        fs.LongTable(table, columns)


def test_refused_options():
    table = rows_of(["a"], [1])
    with pytest.raises(ValueError, match="must be two columns, got 'ds' for both"):
        fs.LongTable(table, "x", id_col="ds")
    with pytest.raises(TypeError, match="time_col must be the name of a column, got None"):
        fs.LongTable(table, "x", time_col=None)
    renamed = table.rename_columns(["series", "when", "x"])
    assert fs.LongTable(renamed, "x", id_col="series", time_col="when").keys == ["a"]


def test_refused_files(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="LongTable: there is no file"):
        fs.LongTable(tmp_path / "none.parquet", "a")
    with pytest.raises(FileNotFoundError, match="LongTable: no file matches"):
        fs.LongTable(tmp_path / "*.parq", "a")
    with pytest.raises(ValueError, match=r"is not a file: for all files of a folder .*\*.parquet'"):
        fs.LongTable(tmp_path, "a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file"):
        fs.LongTable(tmp_path / "pipe", "a")
    (tmp_path / "text").write_text("unique_id,ds,a\n")
    with pytest.raises(fs.ReadError, match="text cannot be read: it is damaged, or is no Parquet"):
        fs.LongTable(tmp_path / "text", "a")


def test_refused_datasets(tmp_path, stored):
    _, path = stored
    filtered = ds.dataset(path).filter(pc.field("a") > 0)
    with pytest.raises(ValueError, match="must be a dataset without a filter"):
        fs.LongTable(filtered, "a")
    ds.write_dataset(pq.read_table(path), tmp_path / "arrow", format="feather")
    with pytest.raises(TypeError, match="must be a dataset of Parquet files on this machine"):
        fs.LongTable(ds.dataset(tmp_path / "arrow", format="feather"), "a")


def test_files_must_agree_on_types(tmp_path):
    pq.write_table(rows_of(["a"], [1]), tmp_path / "0.parquet")
    pq.write_table(rows_of([1], [1]), tmp_path / "1.parquet")
    with pytest.raises(TypeError, match=r"holds integers in .*1.parquet, but text in .*0.parquet"):
        fs.LongTable(tmp_path / "*.parquet", "x")


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(fs.MissingFeatureError, match="LongTable needs the package pyarrow: pip"):
        fs.LongTable("rows.parquet", "x")


# Training


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"scale_x": "standard"}], ids=str)
@pytest.mark.parametrize("room", [2**27, 700], ids=["all", "windows"])
def test_fit_and_predict_are_those_of_arrays(stored, more, room, monkeypatch):
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", room)
    monkeypatch.setattr(table_source, "_WINDOW_BYTES", room)
    rows, path = stored
    x, y = (fs.LongTable(path, columns) for columns in (["a", "b"], "y"))
    arrays = [list(expected(rows, columns).values()) for columns in (["a", "b"], ["y"])]
    one = estimator(**more).fit(x, y, validation=3)
    other = estimator(**more).fit(*arrays, validation=3)
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert one.history_[-1]["validation_loss"] == other.history_[-1]["validation_loss"]
    for got, want in zip(one.predict(x), other.predict(arrays[0]), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(one.predict(x[4:]), other.predict(arrays[0][4:]), strict=True):
        np.testing.assert_array_equal(got, want)


def test_predict_writes_to_a_group_by_ids(stored, tmp_path):
    _, path = stored
    x, est = fs.LongTable(path, ["a", "b"]), estimator()
    with h5py.File(tmp_path / "out.h5", "w") as file:
        for key, length in zip(x.keys, x.lengths, strict=True):
            file.create_dataset(key, (length, 1), np.float32)
        est.predict(x, out=file["/"])
        for key, want in zip(x.keys, est.predict(x), strict=True):
            np.testing.assert_array_equal(file[key], want)
        del file[x.keys[0]]
        with pytest.raises(ValueError, match=f"only one of them has {x.keys[0]}"):
            est.predict(x, out=file["/"])


def test_tables_must_have_the_same_ids(stored):
    x, y = (fs.LongTable(stored[1], columns) for columns in (["a", "b"], "y"))
    first, last = (re.escape(repr(key)) for key in (x.keys[0], x.keys[-1]))
    with pytest.raises(ValueError, match=f"x, but only x has {last}, and only y has {first};"):
        estimator().fit(x[1:], y[:-1])
    with pytest.raises(ValueError, match=f"y must have the same ids as x, but only x has {first};"):
        estimator().fit(x, y[1:])
    with pytest.raises(ValueError, match=f"order, but its sequence 0 is {last}, that of x {first}"):
        estimator().fit(x, y[::-1])
    with pytest.raises(ValueError, match="x has no sequences: the table is an empty part"):
        estimator().fit(x[:0], y[:0])


def test_classifiers_ask_for_the_list(stored):
    x = fs.LongTable(stored[1], ["a", "b"])
    with pytest.raises(TypeError, match=r"got LongTable: pass list\(X\)"):
        fs.SequenceClassifier().fit(x, [0, 1] * 11 + [0])


def test_nan_in_a_table_is_told(stored, tmp_path):
    rows, _ = stored
    rows.loc[rows.index[30], "a"] = np.nan
    table = pa.Table.from_pandas(rows)
    x, y = (fs.LongTable(table, columns) for columns in (["a", "b"], "y"))
    with pytest.raises(fs.NonFiniteError, match="x holds NaN at step"):
        estimator().fit(x, y)
    estimator(nan="mask").fit(x, y)


# What is read


@pytest.fixture
def decoded(monkeypatch):
    """Return the list of the row groups that are decoded as a whole, with their columns."""
    found = []
    read = pq.ParquetFile.read_row_group

    def watched(self, group, columns=None, **more):
        found.append((group, *columns))
        return read(self, group, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    return found


def test_at_first_only_ids_and_times_are_read(stored, decoded, monkeypatch):
    read, found = pq.ParquetFile.iter_batches, []

    def watched(self, *args, columns, **more):
        found.append(columns)
        return read(self, *args, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    fs.LongTable(stored[1], ["a", "y"])
    assert found == [["unique_id", "ds"]] * 30  # row groups
    assert decoded == []


def test_an_item_reads_the_row_groups_it_lies_in_once(stored, decoded):
    _, path = stored
    table = fs.LongTable(path, ["b"])
    assert decoded == []
    ends = np.cumsum(table.lengths)
    begins = ends - table.lengths
    i = int(np.argmax(table.lengths > 17))
    groups = list(range(begins[i] // 17, (ends[i] - 1) // 17 + 1))
    table[i]
    assert decoded == [(group, "b") for group in groups]
    table[i]
    assert len(decoded) == len(groups)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("steps", "passes"), [(1000, (1,)), (200, (3, 4, 5))])
def test_blocks_that_fit_are_read_together(stored, decoded, shuffle, steps, passes, monkeypatch):
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", 17 * 8)  # a single row group
    monkeypatch.setattr(table_source, "_WINDOW_BYTES", steps * 8)
    x = fs.LongTable(stored[1], ["a", "b"])
    y = list(fs.LongTable(stored[1], "y"))
    decoded.clear()
    estimator(epochs=1, shuffle=shuffle).fit(x, y)
    groups = [group for group, *_ in decoded]
    found = np.split(groups, np.flatnonzero(np.diff(groups) <= 0) + 1)
    assert len(found) in passes  # each in the order of the file


def test_many_passes_are_told(stored, monkeypatch):
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", 8)
    monkeypatch.setattr(table_source, "_WINDOW_BYTES", 8)
    rows, path = stored
    rows.to_parquet(path, index=False)  # in one row group, which all blocks need
    x, y = fs.LongTable(path, ["a", "b"]), list(fs.LongTable(path, "y"))
    with pytest.warns(UserWarning, match="row groups of x have been decoded 8 times in one pass"):
        estimator(batchsize=2).fit(x, y)


def test_kept_row_groups_are_bounded(stored, decoded, monkeypatch):
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", 3 * 17 * 8)
    table = fs.LongTable(stored[1], ["a", "b"])
    last = len(table) - 1
    for _ in range(2):
        for i in (0, last, 0, last):
            table[i]
    first = set(decoded)
    list(table)
    decoded.clear()
    table[0]
    assert decoded
    assert set(decoded) <= first


def test_large_row_groups_are_read_bit_by_bit(tmp_path, decoded, monkeypatch):
    count = 150_000
    rows = pa.table({"unique_id": ["a"] * count, "ds": range(count), "x": np.arange(count)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    monkeypatch.setattr(row_reader, "_KEPT_BYTES", 1000)
    table = fs.LongTable(tmp_path / "rows.parquet", "x")
    np.testing.assert_array_equal(table[0][:, 0], np.arange(count))
    assert decoded == []


def test_the_same_table_in_other_processes_and_threads(stored):
    rows, path = stored
    table = fs.LongTable(path, ["a", "b"])
    want = list(expected(rows, ["a", "b"]).values())
    table[3]
    child = os.fork()
    if not child:
        os._exit(not all(np.array_equal(a, b) for a, b in zip(table, want, strict=True)))
    assert os.waitpid(child, 0)[1] == 0
    packed = pickle.dumps(table)
    assert len(packed) < 5000
    np.testing.assert_array_equal(pickle.loads(packed)[3], want[3])  # noqa: S301
    wrong = []

    def check(seed):
        order = np.random.default_rng(seed).integers(0, len(table), 50)
        wrong.extend(i for i in order if not np.array_equal(table[i], want[i]))

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Files that change or are damaged


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_has_changed_is_named(stored, packed):
    rows, path = stored
    table = fs.LongTable(path, ["a"])
    table[0]
    packed = pickle.dumps(table) if packed else None
    rows[::-1].to_parquet(path, index=False, row_group_size=17)
    table = table if packed is None else pickle.loads(packed)  # noqa: S301
    with pytest.raises(fs.ReadError, match=r"rows.parquet changed while it was read"):
        table[0]
    x = fs.LongTable(rows_of(["a"], [1]), "x")
    with pytest.raises(fs.ReadError, match=r"x could not be read .*rows.parquet changed"):
        fs.Estimator(
            nn.Linear(1, 1), fs.seqloss(mse_loss), torch.optim.SGD, SPEC, progress=False
        ).predict(table)
    assert x[0].tolist() == [[0]]
    path.unlink()
    with pytest.raises(fs.ReadError, match=r"rows.parquet .* no longer exists"):
        table[0]


def test_on_another_machine_the_disk_may_have_another_number(stored, monkeypatch):
    table = fs.LongTable(stored[1], ["a"])
    packed, want, real = pickle.dumps(table), table[0], os.stat

    def elsewhere(path, **more):
        found = real(path, **more)
        if path != str(stored[1]):
            return found
        names = ("st_mode", "st_ino", "st_size", "st_mtime_ns")
        return SimpleNamespace(st_dev=found.st_dev + 1, **{n: getattr(found, n) for n in names})

    monkeypatch.setattr(os, "stat", elsewhere)
    np.testing.assert_array_equal(pickle.loads(packed)[0], want)  # noqa: S301
    with pytest.raises(fs.ReadError, match="another file replaced it"):
        table[0]


@pytest.mark.filterwarnings("ignore:steps are unequal")  # other times
@pytest.mark.parametrize("compression", ["NONE", "snappy"])
def test_damaged_files_are_named(stored, compression):
    rows, path = stored
    rows.to_parquet(path, index=False, row_group_size=50, compression=compression)
    whole = path.read_bytes()
    want = expected(rows, ["a", "b"])
    rng = np.random.default_rng(0)
    raised = 0
    for case in range(150):
        bad = bytearray(whole)
        if case % 3 == 0:
            bad = bad[: rng.integers(len(bad))]
        else:
            for at in rng.integers(0 if case % 3 == 1 else len(bad) * 3 // 4, len(bad), 3):
                bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            table = fs.LongTable(path, ["a", "b"])
            arrays = list(table)
        except fs.ReadError as error:
            raised += 1
            assert str(path) in str(error)  # noqa: PT017
        except (ValueError, TypeError) as error:  # another schema, other ids or times
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert len(arrays) == len(table.keys)
            assert sum(map(len, arrays)) <= len(rows)
    assert raised > 50
    assert want


def test_statistics_that_lie_are_told(tmp_path):
    path = tmp_path / "rows.parquet"
    schema = pa.schema([("unique_id", "string"), ("ds", "int64"), ("x", "int64")])
    count = 70_000  # the first are looked at, whatever the statistics say
    x = [*range(1, count), None]
    table = pa.table({"unique_id": ["a"] * count, "ds": range(count), "x": x}, schema)
    pq.write_table(table, path, compression="NONE")
    whole = path.read_bytes()
    # The column's number of nulls, in the footer's statistics, beside its least and largest value.
    found = whole.rfind(b"\x16\x02\x28\x08")
    assert found >= 0
    path.write_bytes(whole[: found + 1] + b"\x00" + whole[found + 2 :])
    with pytest.raises(fs.ReadError, match=r"rows.parquet cannot be read.*statistics deny"):
        fs.LongTable(path, "x")[0]
