"""Static features: one row of them for each sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from sklearn.utils import check_array

from ...data.samples_first import SamplesFirst
from ...data.user_arrays import refuse_foreign, refuse_null
from .category_columns import CategoryColumns, is_frame, refuse_text
from .input_checks import Array, Inputs, numbers
from .input_forms import check_order
from .polars_frames import is_polars, refuse_unread, to_pandas

__all__ = ["StaticFeatures", "read_static"]


@dataclasses.dataclass(frozen=True)
class StaticFeatures:
    """Static features, not scaled yet.

    Parameters
    ----------
    rows
        ``(N, S)``, fp64: numbers, NaN where they are missing, and codes.
    names
        Names of the columns of a data frame; None: they came as an array.
    columns
        Which of them are codes of categories; None: none.
    """

    rows: Array
    names: tuple[str, ...] | None
    columns: CategoryColumns | None

    @property
    def form(self) -> tuple[object, ...]:
        """Number of columns and categories, to compare."""
        return self.rows.shape[1], None if self.columns is None else self.columns.form


def read_static(
    given: Any, inputs: Inputs, known: StaticFeatures | None, *, rows: str | None, nan: str
) -> StaticFeatures:
    """Check static features.

    Parameters
    ----------
    given
        ``(N, S)``: an array or a data frame, one row for each sequence.
    inputs
        The sequences.
    known
        The static features of `fit`, whose columns these must have; None: these are `fit`'s.
    rows
        What rows of X are, if it is a table: ``"series"`` or ``"samples"``.
    nan
        ``"mask"``: numbers may be missing.

    Raises
    ------
    ValueError, TypeError
        They are something else.

    Examples
    --------
    >>> import torch
    >>> inputs = Inputs(np.zeros((2, 5, 1)), np.full(2, 5), torch.float32)
    >>> read_static([[3], [4]], inputs, None, rows=None, nan="raise").rows.T
    array([[3., 4.]])
    """
    if inputs.image is not None:
        raise ValueError("static is for sequences, but X holds images: leave it out")
    if rows == "samples":
        raise ValueError(
            "static is for sequences, but each row of X is a sample of one step: add its columns "
            "to X instead"
        )
    if isinstance(inputs.x, SamplesFirst):
        raise ValueError("static needs X in memory, but X is a dataset in a file: pass X[:]")
    refuse_null(given, "static")
    refuse_foreign(given, "static")
    refuse_unread(given, "static")
    given = to_pandas(given) if is_polars(given) else given
    if getattr(given, "shape", ())[1:] == (0,):
        raise ValueError("static has no columns: leave it out")
    frame = is_frame(given)
    columns = None if known is None else known.columns
    if frame and known is None:
        columns = CategoryColumns.find([given], "static")
    elif columns is not None and not frame:
        place = next(iter(columns.vocabularies))
        raise TypeError(
            f"static must be a data frame, as in fit: its column {columns.names[place]!r} holds "
            f"categories; got {type(given).__name__}"
        )
    if not frame:
        _refuse_text(given)
    check_order(given, "static", inputs.names, panel=inputs.listed)
    names = tuple(map(str, given.columns)) if frame else None
    _check_names(names, known)
    refuse_text(given, "static", columns)
    given = given if columns is None else columns.coded([given], "static")[0]
    found = check_array(given, input_name="static", ensure_all_finite=False)
    found = numbers(found, "static").astype(float)
    if len(found) != inputs.count:
        raise ValueError(
            f"static must have a row for each of the {inputs.count} sequences, got {len(found)}"
        )
    if known is not None and found.shape[1] != known.rows.shape[1]:
        raise ValueError(
            f"static must have {known.rows.shape[1]} columns, as in fit, got {found.shape[1]}"
        )
    if columns is not None:
        found = columns.settled(found, mask=False)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad) and nan != "mask":
        row, column = bad[0]
        shown = repr(names[column]) if names is not None else column
        raise ValueError(
            f"static holds {found[row, column]} in row {row}, column {shown}: fill it in, leave "
            'it out, or pass nan="mask" to the estimator'
        )
    found[~np.isfinite(found)] = np.nan
    return StaticFeatures(found, names, columns)


def _check_names(names: tuple[str, ...] | None, known: StaticFeatures | None) -> None:
    if names is None or known is None or known.names is None or names == known.names:
        return
    raise ValueError(
        f"static must have the columns {', '.join(known.names)}, as in fit, in this order; got "
        f"{', '.join(names)}"
    )


def _refuse_text(given: Any) -> None:
    """Raise if an array or list holds text that is no number."""
    held = np.asarray(given, object) if isinstance(given, (list, tuple)) else given
    kind = getattr(getattr(held, "dtype", None), "kind", None)
    try:
        if kind == "O":
            np.asarray(held).astype(float)
    except ValueError:
        kind = "U"
    except TypeError:  # scikit-learn says what is wrong
        return
    if kind in ("U", "S"):
        raise ValueError("static holds text: for categories pass a data frame")
