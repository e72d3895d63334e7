"""Numbers and times of tables that would be misread."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn, optim
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.data.tables import row_groups

DATES = pd.date_range("2024-01-01", periods=40, freq="h").to_series().to_numpy()


def table_of(times, ids="ab"):
    """Return a table in which each sequence has the same times."""
    count = len(times)
    rows = {
        "unique_id": [one for one in ids for _ in range(count)],
        "ds": pa.concat_arrays([pa.array(times)] * len(ids)),
        "x": np.arange(float(count * len(ids))),
    }
    return pa.table(rows)


def evaluate(x, y):
    est = fs.Estimator(nn.Linear(1, 1), fs.seqloss(mse_loss), optim.SGD, fs.Spec(1, 2, 10))
    return est.evaluate(x, y)


@pytest.mark.parametrize("beside", [None, 0.5])
def test_integers_that_floats_would_round_are_refused(tmp_path, beside):
    rows = pd.DataFrame({"unique_id": "a", "ds": range(3), "count": [1, 2**53 + 1, 3], "x": 1})
    path = tmp_path / "rows.parquet"
    if beside is None:
        rows["count"] = pd.array([1, 2**53 + 1, None], "Int64")
    else:
        rows["x"] = beside
    rows.to_parquet(path, index=False)
    with pytest.raises(fs.ReadError, match="'count' has the integer 9007199254740993"):
        list(fs.LongTable(path, ["count", "x"]))
    if beside is not None:
        assert fs.LongTable(path, ["count"])[0][1, 0] == 2**53 + 1


def test_times_beyond_python_s_dates_are_told(tmp_path):
    times = pa.array([2**62, 5], pa.timestamp("s"))
    table = pa.table({"unique_id": ["a", "a"], "ds": times, "x": [1.0, 2.0]})
    with pytest.raises(
        ValueError, match=r"must increase, but 1970-01-01 00:00:05 .* after 4611686"
    ):
        fs.LongTable(table, "x")


@pytest.mark.filterwarnings("ignore:steps are unequal in 2 of 4 sequences")
def test_tables_must_have_the_same_times(tmp_path, monkeypatch):
    later = DATES.copy()
    later[30:] += np.timedelta64(3, "D")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.concat_tables([table_of(DATES, "ab"), table_of(later, "cd")]), path, 7)
    y = fs.LongTable(path, "x")
    monkeypatch.setattr(row_groups, "_BATCH_ROWS", 11)
    x = fs.LongTable(table_of(DATES, "abcd"), "x")
    message = (
        "y must have the times of x, but in 'c' it has 2024-01-05 06:00:00 where x has "
        r"2024-01-02 06:00:00; if that is meant, pass list\(y\)"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(x, y)
    with pytest.raises(ValueError, match=message.replace("'c'", "'d'")):
        evaluate(x[3:], y[3:])
    with pytest.raises(ValueError, match=r"x\[1\] must have the times of x\[0\], but in 'c'"):
        evaluate((x, y), list(y))
    assert np.isfinite(evaluate(x, list(y)))
    assert np.isfinite(evaluate(x[:2], y[:2]))


@pytest.mark.parametrize(
    ("times", "same"),
    [
        (DATES, [DATES.astype("M8[s]"), DATES.astype("M8[ms]")]),
        (pa.array([0, 1, 2], pa.date32()), [pa.array([0, 1, 2], pa.date32()).cast(pa.date64())]),
        (pa.array([0, 3600], pa.timestamp("s", "UTC")),
         [pa.array([0, 3_600_000], pa.timestamp("ms", "Europe/Berlin"))]),
        (np.array([-1, 0, 1], np.int8), [np.array([-1.0, -0.0, 1.0], t) for t in ("f2", "f4", "f8")]),
        (np.array([-0.5, 0, 0.5]), [np.array([-0.5, 0, 0.5], np.float32)]),
        (np.array([2**64 - 2, 2**64 - 1], np.uint64), []),
    ],
    ids=["dates", "days", "zones", "integers", "floats", "large"],
)  # fmt: skip
def test_equal_times_may_be_stored_otherwise(times, same):
    x = fs.LongTable(table_of(times), "x")
    for one in [times, *same]:
        evaluate(x, fs.LongTable(table_of(one), "x"))


@pytest.mark.parametrize(
    ("times", "other", "message"),
    [
        ([1, 2, 3], [0.5, 2.0, 3.0], "y must .* in 'a' it has 0.5 where x has 1; if"),
        ([2**60, 2**60 + 1], [2**60, 2**60 + 2], "has 1152921504606846978 where x has"),
        ([1, 2], DATES[:2], "times of x, but has dates, x numbers: convert one of them"),
        (DATES[:2], pa.array(DATES[:2]).cast(pa.timestamp("us", "UTC")),
         "but has times of a time zone, x dates: convert"),
    ],
    ids=["floats", "large", "kinds", "zones"],
)  # fmt: skip
def test_other_times_are_told(times, other, message):
    x, y = (fs.LongTable(table_of(one), "x") for one in (times, other))
    with pytest.raises(ValueError, match=message):
        evaluate(x, y)


@pytest.mark.parametrize("rows", [3, 40, 2**16])
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_unequal_steps_are_told_once(tmp_path, monkeypatch, rows, unit):
    monkeypatch.setattr(row_groups, "_BATCH_ROWS", rows)
    gap = np.delete(DATES.astype(f"M8[{unit}]"), range(10, 20))
    table = pa.concat_tables([table_of(DATES.astype(f"M8[{unit}]")), table_of(gap, "cde")])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=rows)
    message = (
        "steps are unequal in 3 of 5 sequences: in 'c', 2024-01-01 20:00:00 comes right after "
        "2024-01-01 09:00:00. Rows are read as consecutive steps"
    )
    for source in (table, tmp_path / "rows.parquet"):
        with pytest.warns(match=message) as found:
            fs.LongTable(source, "x")
        assert [one.filename for one in found] == [__file__]


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2023-01-31", periods=25, freq="ME"), pd.date_range("1999", periods=9, freq="YS"),
        np.arange(50) + np.random.default_rng(0).uniform(-0.1, 0.1, 50),
        np.array([-(2**62), 0, 2**62]), DATES[:1],
    ],
    ids=["months", "years", "jitter", "large", "one"],
)  # fmt: skip
def test_steps_that_are_about_equal_are_not_told(times):
    fs.LongTable(table_of(times), "x")
