"""`batch_predict`: a client of the server that sends many records, some at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.optional_imports import need
from ..training.spec import check_count
from .json_values import listed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["batch_predict"]

_AGAIN = (429, 502, 503, 504)  # answers after which to try again


def batch_predict(
    url: str,
    records: Any,
    *,
    static: Any = None,
    batch_size: int = 64,
    retries: int = 5,
    timeout: float = 30.0,
) -> pd.DataFrame:
    """Send records to a server of `serve`, and return its answers as a frame, in their order.

    Parameters
    ----------
    url
        Where the server is, such as ``"http://127.0.0.1:8000"``.
    records
        An array ``(N, …)``, a list of arrays or lists, or a data frame, whose rows are records.
        NaN is sent as a missing value.
    static
        Static features of the records, if `fit` got some: an array ``(N, S)`` or a data frame.
    batch_size
        Records per request.
    retries
        How often a request is sent again if the server is not there, does not answer in time or is
        overloaded: after 0.2 s, 0.4 s and so on, or when the server says.
    timeout
        Seconds to wait for an answer.

    Returns
    -------
    pandas.DataFrame
        One row for each record: column "prediction", of a classifier with one target also the
        probabilities, "probability_A" for class A and so on. Records of several outputs or steps
        have lists.

    Raises
    ------
    ValueError
        The server refuses records: the message says which and why.
    ConnectionError
        It does not answer, after all retries.
    TypeError
        Records are something else.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.serving.batch_predict("http://127.0.0.1:1", [[0.5]], retries=0)
    Traceback (most recent call last):
    ConnectionError: batch_predict: http://127.0.0.1:1/predict did not answer records 0 to 0 ...
    """
    urllib3 = need("urllib3", "batch_predict")
    pandas = need("pandas", "batch_predict")
    check_count("batch_size", batch_size)
    try:
        address = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError as error:
        raise ValueError(f"url must be like 'http://127.0.0.1:8000', got {url!r}") from error
    plain = address.query is None and address.fragment is None
    if address.scheme not in ("http", "https") or not address.host or not plain:
        raise ValueError(f"url must be like 'http://127.0.0.1:8000', got {url!r}")
    if isinstance(retries, bool) or not isinstance(retries, Integral) or retries < 0:
        raise ValueError(f"retries must be an integer, 0 or more, got {retries!r}")
    if not (isinstance(timeout, Real) and 0 < timeout < math.inf):
        raise ValueError(f"timeout must be a number of seconds, got {timeout!r}")
    target = url.rstrip("/") + "/predict"
    rows = _plain(records, "records")
    beside = None if static is None else _plain(static, "static")
    if beside is not None and len(beside) != len(rows):
        raise ValueError(f"static has {len(beside)} rows, but there are {len(rows)} records")
    again = urllib3.Retry(
        total=retries,
        backoff_factor=0.2,
        backoff_jitter=0.1,
        status_forcelist=_AGAIN,
        allowed_methods=None,  # to predict twice does no harm
        raise_on_status=False,
    )
    frames = []
    with urllib3.PoolManager(retries=again, timeout=timeout) as pool:
        for start in range(0, len(rows), batch_size):
            body: dict[str, Any] = {"records": rows[start : start + batch_size]}
            if beside is not None:
                body["static"] = beside[start : start + batch_size]
            frames.append(_frame(_sent(pool, target, body, start), len(body["records"]), target))
    if not frames:
        return pandas.DataFrame({"prediction": []})
    whole: pd.DataFrame = pandas.concat(frames, ignore_index=True)
    return whole


def _sent(pool: Any, target: str, body: dict[str, Any], start: int) -> Any:
    """Return the answer to one request."""
    import urllib3

    which = f"records {start} to {start + len(body['records']) - 1}"
    try:
        answer = pool.request(
            "POST", target, body=json.dumps(body), headers={"Content-Type": "application/json"}
        )
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"batch_predict: {target} did not answer {which} ({reason}): start the server, or "
            "raise retries or timeout"
        ) from error
    try:
        content = json.loads(answer.data)
    except ValueError:
        content = None
    if answer.status == 200 and isinstance(content, dict):
        return content
    detail = content.get("detail") if isinstance(content, dict) else None
    if isinstance(detail, str):  # the server counts the records of the request
        detail = re.sub(
            r"^(records|static)\.(\d+)", lambda m: f"{m[1]}.{start + int(m[2])}", detail
        )
    text = (
        f"batch_predict: {target} answered {which} with {answer.status}: {detail or answer.reason}"
    )
    if answer.status in _AGAIN:
        raise ConnectionError(text)
    raise ValueError(text)


def _frame(content: dict[str, Any], count: int, target: str) -> pd.DataFrame:
    """Return one answer as rows."""
    import pandas as pd

    predictions = content.get("predictions")
    if not isinstance(predictions, list) or len(predictions) != count:
        raise ValueError(
            f"batch_predict: {target} did not answer with {count} predictions: it is not a "
            "fastseq server"
        )
    columns: dict[str, Any] = {"prediction": predictions}
    classes, probabilities = content.get("classes"), content.get("probabilities")
    if classes is not None and probabilities is not None:
        for place, name in enumerate(classes):
            columns[f"probability_{name}"] = [row[place] for row in probabilities]
    return pd.DataFrame(columns)


def _plain(given: Any, name: str) -> list[Any]:
    """Return rows as JSON has them."""
    if hasattr(given, "to_dicts"):  # of polars
        return [_value(row, name) for row in given.to_dicts()]
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a data frame
        if not given.columns.is_unique:
            raise ValueError(f"{name} has two columns of the same name")
        return [_value(row, name) for row in given.astype(object).to_dict("records")]
    single = hasattr(given, "ndim") and given.ndim == 0
    if not hasattr(given, "__len__") or isinstance(given, str | bytes | dict | set) or single:
        raise TypeError(f"{name} must be an array, a list or a data frame, got {given!r:.60}")
    return [_value(one, name) for one in given]


def _value(given: Any, name: str) -> Any:
    if hasattr(given, "numpy"):  # a tensor
        given = given.numpy(force=True)
    if isinstance(given, np.ndarray | np.generic):
        return _array_value(np.asarray(given), name)
    if isinstance(given, float):
        return _array_value(np.asarray(given), name)
    if isinstance(given, str | bool | int) or given is None:
        return given
    if type(given).__name__ in ("NAType", "NaTType"):  # of pandas
        return None
    if isinstance(given, dict):
        return {key: _value(one, name) for key, one in given.items()}
    if isinstance(given, Sequence):
        return [_value(one, name) for one in given]
    raise TypeError(f"{name} must hold numbers, texts and lists of them, got {given!r:.60}")


def _array_value(given: np.ndarray, name: str) -> Any:
    if given.dtype == object:
        return _value(given.tolist(), name)
    if given.dtype.kind not in "biufU":
        raise TypeError(f"{name} must hold numbers and texts, got {given.dtype}")
    if given.dtype.kind == "f" and np.isinf(given).any():
        raise ValueError(f"{name} has an infinite value")
    return listed(given)
