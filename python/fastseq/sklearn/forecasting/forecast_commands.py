"""Forecasters on the command line: ``fastseq fit`` and ``fastseq predict``."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import itertools
import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._util.arguments import values_of
from ..._util.atomic_file import replacing
from ..._util.optional_imports import need
from ..._util.settings_file import read_settings
from ..._util.spelling import meant
from ...distributed import world
from .forecast_plot import plot_forecast
from .forecaster import SequenceForecaster

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["add_fit", "add_predict", "fit", "predict"]

_CSV = (".csv", ".csv.gz")
_PARQUET = (".parquet",)
_SHOWN = 12  # series in a picture
_HORIZONS = 6  # of their past
_STEPS = 24  # of it at least


def add_fit(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Add the arguments of ``fit``: a file's settings in `words` are the options' defaults."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for into in (parser, early):
        into.add_argument(
            "--settings", metavar="FILE", help="YAML with options' values: 'horizon: 12'"
        )
    parser.add_argument(
        "data",
        help="CSV or Parquet file: a row for each series and time, with columns unique_id, ds, y "
        "(or others: --id-col, --time-col, --target-col) and covariates; without a column of ids "
        "it is one series",
    )
    parser.add_argument("model", help="the file to write (.safetensors)")
    file = early.parse_known_args(words)[0].settings
    settings = {} if file is None else _settings(file)
    SequenceForecaster.add_arguments(parser, **{"verbose": 1, **settings})
    named = any(word.partition("=")[0] == "--id-col" for word in words)
    parser.set_defaults(ids_named=named or "id_col" in settings)


def _settings(path: str) -> dict[str, Any]:
    settings = read_settings(path)
    try:
        return values_of(SequenceForecaster, settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``predict``."""
    parser.add_argument("model", help="a file that fit has written")
    parser.add_argument(
        "data",
        nargs="?",
        help="series to forecast, from their start, in the form of the training data (default: "
        "those of training, which are continued)",
    )
    parser.add_argument("--new", metavar="FILE", help="steps that follow the training data")
    parser.add_argument("--future", metavar="FILE", help="covariates of the steps to forecast")
    parser.add_argument("--horizon", type=int, metavar="N", help="steps to forecast")
    parser.add_argument("--out", metavar="FILE", help="CSV or Parquet file (default: CSV, printed)")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help=f"a picture (.png) of the series in data, of the first {_SHOWN} if there are more",
    )


def fit(arguments: argparse.Namespace) -> None:
    """Train a forecaster on a file, and save it.

    Raises
    ------
    ValueError, TypeError, OSError
        A file or an option cannot be used.
    """
    comm = world()
    model = Path(arguments.model)
    forecaster = SequenceForecaster.from_args(arguments, comm=comm)
    table = _Table.read(arguments.data, forecaster, ids=arguments.ids_named)
    if model.suffix != ".safetensors":
        raise ValueError(f"the model to write must be a file *.safetensors, got {str(model)!r}")
    _check_folder(model)
    forecaster.fit(*table.series())
    forecaster.save(model)
    if comm.rank == 0:
        print(f"{table.summary()}: {model} written", file=sys.stderr)


def predict(arguments: argparse.Namespace) -> None:
    """Write the forecasts of a saved forecaster.

    Raises
    ------
    ValueError, TypeError, OSError
        A file or an option cannot be used.
    """
    if arguments.plot and not arguments.data:
        raise ValueError(
            "--plot draws series with their forecasts: give the file of the series, too"
        )
    if arguments.data and arguments.new:
        raise ValueError(
            "--new continues the series of training, but data are other series: give either "
            "data or --new"
        )
    _check_outputs(arguments)
    forecaster = SequenceForecaster.load(arguments.model, comm=world())
    if arguments.new:
        forecaster.update(*_Table.read(arguments.new, forecaster).series())
    table = _Table.read(arguments.data, forecaster) if arguments.data else None
    y, x = table.series() if table else (None, None)
    if arguments.future:
        x = _future(arguments.future, forecaster, table)
    forecast = forecaster.predict(y, x, horizon=arguments.horizon)
    if world().rank == 0:
        rows = _rows_of(forecast, forecaster)
        _write(rows, arguments.out)
        if arguments.out:
            print(f"{len(rows)} rows: {arguments.out} written", file=sys.stderr)
        if table and arguments.plot:
            picture = _picture(table, forecast)
            with replacing(Path(arguments.plot)) as beside:
                kind = Path(arguments.plot).suffix.lstrip(".")
                picture.savefig(beside, dpi=120, format=kind)
            drawn = f"{len(picture.axes)} of {table.count} series drawn"
            print(f"{drawn}: {arguments.plot} written", file=sys.stderr)


class _Table:
    """Rows of a file, of many series or of one."""

    def __init__(self, rows: pd.DataFrame, forecaster: Any) -> None:
        self.rows = rows
        self.id, self.time = forecaster.id_col, forecaster.time_col
        self.target = forecaster.target_col
        self.many = self.id in rows.columns

    @classmethod
    def read(cls, path: str, forecaster: Any, *, ids: bool = False) -> _Table:
        """Read a file; with `ids` it must have a column of them."""
        found = cls(_read(path, forecaster.id_col, forecaster.time_col), forecaster)
        needed = {found.time: "time", found.target: "target"}
        if ids:
            needed[found.id] = "id"
        _check_columns(path, found.rows, needed)
        _check_times(path, found.rows, forecaster)
        _check_numbers(path, found.rows[found.target])
        return found

    @property
    def count(self) -> int:
        """How many series there are."""
        return int(self.rows[self.id].nunique()) if self.many else 1

    def summary(self) -> str:
        """Return how much there is, and which columns are covariates."""
        others = [c for c in self.rows.columns if c not in (self.id, self.time, self.target)]
        numbers = self.rows.select_dtypes("number").columns
        names = [str(c) if c in numbers else f"{c} (categories)" for c in others]
        covariates = f", covariates: {', '.join(names)}" if names else ""
        return f"{self.count} series, {len(self.rows)} rows{covariates}"

    def series(self) -> tuple[Any, Any]:
        """Return what a forecaster takes: a long frame, or a series and its covariates."""
        if self.many:
            return self.rows, None
        rows = self.rows.set_index(self.time)
        covariates = rows.drop(columns=self.target)
        return rows[self.target], covariates if len(covariates.columns) else None

    def each(self) -> Iterator[tuple[Any, pd.Series]]:
        """Yield each series, with its id; None: there is none."""
        if not self.many:
            yield None, self.series()[0].sort_index()
            return
        for name, rows in self.rows.groupby(self.id, sort=True, observed=True):
            yield name, rows.set_index(self.time)[self.target].sort_index()


def _future(path: str, forecaster: Any, table: _Table | None) -> Any:
    rows = _read(path, forecaster.id_col, forecaster.time_col)
    _check_columns(path, rows, {forecaster.time_col: "time"})
    _check_times(path, rows, forecaster)
    rows = rows.drop(columns=forecaster.target_col, errors="ignore")
    if forecaster.id_col in rows.columns:
        return rows
    rows = rows.set_index(forecaster.time_col)
    known = None if table is None else table.series()[1]
    return rows if known is None else need("pandas", "predict").concat([known, rows])


def _check_columns(path: str, rows: pd.DataFrame, needed: dict[str, str]) -> None:
    for name, what in needed.items():
        if name not in rows.columns:
            raise ValueError(
                f"{path} has no column {name!r} (it has {_names(rows)}): "
                f"rename one, or train with --{what}-col NAME{meant(name, rows.columns)}"
            )


def _names(rows: pd.DataFrame) -> str:
    """Return the names of some columns, for messages."""
    return ", ".join(f"{name!r:.60}" for name in rows.columns[:20])


def _check_times(path: str, rows: pd.DataFrame, forecaster: Any) -> None:
    """Raise if there are several rows for a time, but no column says of which series."""
    twice = rows[forecaster.time_col].duplicated()
    if forecaster.id_col not in rows.columns and twice.any():
        raise ValueError(
            f"{path} has several rows for {rows[forecaster.time_col][twice].iloc[0]}, but no "
            f"column {forecaster.id_col!r} of series' ids (it has {_names(rows)}): rename one, "
            "or train with --id-col NAME; if it is one series, keep one row for each time"
        )


def _check_numbers(path: str, target: pd.Series) -> None:
    """Raise if there is a word among the values of a CSV file."""
    import pandas as pd
    from pyarrow import csv

    if _kind_of(path) != "csv" or pd.api.types.is_numeric_dtype(target):
        return
    # Arrow reads what is no UTF-8 as bytes.
    texts = target.map(lambda a: a.decode(errors="replace") if isinstance(a, bytes) else str(a))
    missing = target.isna() | texts.isin(csv.ConvertOptions().null_values)
    wrong = (pd.to_numeric(texts, errors="coerce").isna() & ~missing).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path} has {texts.iloc[row]!r:.100} in column {target.name!r} in line {row + 2}: "
            "values must be numbers, such as 0.5, or empty where they are missing"
        )


def _check_separator(path: str) -> None:
    """Raise if a CSV file's header has semicolons or tabs, but no commas."""
    opened = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            header = file.readline(1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None
    for sign, name in ((b";", "semicolons"), (b"\t", "tabs"), (b"|", "bars")):
        if sign in header and b"," not in header:
            raise ValueError(
                f"{path} has {name} between its columns: write it with commas, and numbers with "
                "points (pandas: read_csv(sep=…, decimal=…), then to_csv)"
            )


def _kind_of(path: str) -> str:
    for kinds, name in ((_CSV, "csv"), (_PARQUET, "parquet")):
        if path.lower().endswith(kinds):
            return name
    raise ValueError(f"{path} must be a file *.csv, *.csv.gz or *.parquet")


def _read(path: str, id_col: str, time_col: str) -> pd.DataFrame:
    """Return a file's rows: the ids of a CSV file are texts, its times numbers or ISO 8601."""
    need("pandas", "a command for forecasters")
    need("pyarrow", "a command for forecasters")
    import pandas as pd

    if _kind_of(path) == "parquet":
        with _unpacking(path, "Parquet"):
            rows: pd.DataFrame = pd.read_parquet(path)
        return rows
    _check_separator(path)
    rows = _read_csv(path, [id_col, time_col])
    if id_col in rows.columns and (rows[id_col] == "").any():
        row = int((rows[id_col] == "").to_numpy().argmax()) + 2
        raise ValueError(f"{path} has no {id_col!r} in line {row}")
    if time_col in rows.columns:
        rows[time_col] = _times(path, rows[time_col])
    return rows


def _read_csv(path: str, texts: list[str]) -> pd.DataFrame:
    """Return a CSV file's rows, those columns as they are written: 007, and NA.

    Arrow's reader refuses rows with more or fewer fields than the header, and knows a column's
    type from all of its rows. Words for missing numbers, such as NA, are words among words.
    """
    table = _arrow_table(path, texts)
    # A column that holds nothing but such a word was taken for numbers that are all missing.
    empty = [field.name for field in table.schema if str(field.type) == "null"]
    if empty:
        as_text = _arrow_table(path, [*texts, *empty])
        words = [name for name in empty if any(as_text[name].to_pylist())]
        table = _arrow_table(path, [*texts, *words]) if words else table
    with _unpacking(path, "CSV"):  # names may be no UTF-8
        names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}")
    if "" in names:
        raise ValueError(
            f"{path} has a column without a name: leave it out (pandas: to_csv(index=False))"
        )
    if not table.num_rows:
        raise ValueError(f"{path} has no rows")
    with _unpacking(path, "CSV"):
        rows: pd.DataFrame = table.to_pandas()
    return rows


def _arrow_table(path: str, texts: list[str]) -> Any:
    import pyarrow
    from pyarrow import csv

    whole = min(max(Path(path).stat().st_size * 16, 1 << 20), (1 << 31) - 1)  # it may be packed
    types = dict.fromkeys(texts, pyarrow.string())
    with _unpacking(path, "CSV"):
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=whole),
            convert_options=csv.ConvertOptions(column_types=types),
        )


@contextlib.contextmanager
def _unpacking(path: str, kind: str) -> Iterator[None]:
    """Turn errors of Arrow and pandas about a file into a ValueError that names it.

    pandas raises of any kind for what it does not know in its own part of Parquet files.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: there is no such file
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is not {kind}, or is damaged: {text:.300}") from None


def _times(path: str, texts: pd.Series) -> pd.Series:
    import pandas as pd

    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all():
        return numbers
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # pandas 2 of what pandas 3 refuses
            times: pd.Series = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=False)
    except (ValueError, FutureWarning):
        raise ValueError(
            f"{path} has times with different UTC offsets, as where clocks change: write them "
            "in UTC, or without offsets"
        ) from None
    wrong = (times.isna() & (texts != "")).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path} has the time {texts.iloc[row]!r:.100} in line {row + 2}: write times as "
            "2026-01-31 or 2026-01-31 17:30:00, or as numbers of steps"
        )
    return times


def _rows_of(forecast: Any, forecaster: Any) -> pd.DataFrame:
    """Return forecasts as rows, those of one series with its times."""
    rows: pd.DataFrame = forecast.to_frame("forecast") if forecast.ndim == 1 else forecast
    if forecaster.id_col in rows.columns:
        return rows
    return rows.rename_axis(forecaster.time_col).reset_index()


def _write(rows: pd.DataFrame, out: str | None) -> None:
    if out is None:
        rows.to_csv(sys.stdout, index=False)
        return
    with replacing(Path(out)) as beside:
        if _kind_of(out) == "parquet":
            need("pyarrow", "a Parquet file")
            rows.to_parquet(beside, index=False)
        else:
            packed = "gzip" if out.lower().endswith(".gz") else None
            rows.to_csv(beside, index=False, compression=packed)


def _picture(table: _Table, forecast: Any) -> Figure:
    """Draw the first series with their forecasts."""
    from matplotlib.figure import Figure

    count = min(table.count, _SHOWN)
    steps = max(_HORIZONS * len(forecast) // table.count, _STEPS)
    columns = min(count, 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(9 * columns / 1.2, 3.2 * lines), layout="constrained")
    for place, (name, past) in enumerate(itertools.islice(table.each(), count)):
        ax = figure.add_subplot(lines, columns, place + 1)
        plot_forecast(
            past.iloc[-steps:], forecast, series=name, ax=ax,
            id_col=table.id, time_col=table.time, target_col=table.target,
        )  # fmt: skip
        ax.set_title(table.target if name is None else str(name), fontsize=10)
    return figure


def _check_outputs(arguments: argparse.Namespace) -> None:
    inputs = (arguments.model, arguments.data, arguments.new, arguments.future)
    read = {os.path.realpath(path) for path in inputs if path}
    for path in filter(None, (arguments.out, arguments.plot)):
        _check_folder(Path(path))
        if os.path.realpath(path) in read:
            raise ValueError(f"{path} is also read: write to another file")
    if arguments.out:
        _kind_of(arguments.out)
    if arguments.plot:
        need("matplotlib", "--plot")
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = FigureCanvasBase.get_supported_filetypes()
        if Path(arguments.plot).suffix.lstrip(".") not in kinds:
            raise ValueError(f"{arguments.plot} must be a picture, such as *.png or *.pdf")


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} for {path.name}")
