"""Numbers and times of tables that would be misread."""

import pandas as pd
import pyarrow as pa
import pytest

import fastseq as fs


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
