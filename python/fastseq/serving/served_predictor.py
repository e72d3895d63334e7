"""A classifier or regressor behind the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..sklearn import SequenceClassifier, SequenceRegressor
from ..sklearn.fitted_form import TableForm
from .json_values import array_of, listed
from .record_types import record_type, static_type

__all__ = ["ServedPredictor"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one record."""

    prediction: Any
    probabilities: Any = None


class ServedPredictor:
    """Predicts records, each with its static features or None.

    Parameters
    ----------
    model
        A fitted classifier or regressor.
    """

    def __init__(self, model: SequenceClassifier | SequenceRegressor) -> None:
        self._model, self._form = model, model.form_
        form = self._form
        self.record_type: Any = record_type(form)
        self.static_type: Any = static_type(form)
        self.classes: list[Any] | None = None  # of one target
        self.probabilities: bool = False
        if isinstance(model, SequenceClassifier):
            self.probabilities = form.labels or form.targets == 1
            if self.probabilities and not form.labels:
                self.classes = listed(model.classes_)
        self.metadata: dict[str, Any] = {
            "features": form.features.count,
            "targets": form.targets,
            "per_step": form.per_step,
            "classes": self.classes,
            "trained_epochs": int(model.n_iter_),
        }

    def run(self, pairs: Sequence[tuple[Any, Any]]) -> list[Answer]:
        """Return the answers to records."""
        x, static = self._inputs([record for record, _ in pairs]), None
        if self._form.static is not None:
            static = _table([row for _, row in pairs], self._form.static)
        if not self.probabilities:
            return [Answer(listed(one)) for one in self._model.predict(x, static=static)]
        assert isinstance(self._model, SequenceClassifier)
        labels, chances = self._model.predict_and_proba(x, static=static)
        return [Answer(listed(a), listed(b)) for a, b in zip(labels, chances, strict=True)]

    def answer(self, found: Sequence[Answer]) -> dict[str, Any]:
        """Return the answer to one request."""
        whole: dict[str, Any] = {"predictions": [one.prediction for one in found]}
        if self.probabilities:
            whole["classes"] = self.classes
            whole["probabilities"] = [one.probabilities for one in found]
        return whole

    def _inputs(self, records: list[Any]) -> Any:
        """Return X."""
        names = self._form.features.names
        kind = float if self._form.ids is None else np.int64
        if self._form.rows == "samples" and kind is float:
            return _table(records, self._form.features)
        counts = list(map(len, records))
        if names is None or kind is np.int64:
            alike = len(set(counts)) == 1
            return array_of(records, kind) if alike else [array_of(one, kind) for one in records]
        import pandas as pd

        table = _table([step for record in records for step in record], self._form.features)
        of = np.repeat(np.arange(len(records)), counts)
        place = np.concatenate([np.arange(count) for count in counts])
        table.index = pd.MultiIndex.from_arrays([of, place])
        return table


def _table(rows: list[Any], form: TableForm) -> Any:
    """Return rows as a data frame, or as an array if columns have no names."""
    if form.names is None:
        return np.array(rows, float)
    import pandas as pd

    columns = {}
    for place, name in enumerate(form.names):
        values = [getattr(row, f"column_{place}") for row in rows]
        if place in form.categories:
            columns[name] = pd.Series(values, dtype=object).astype("category")
        else:
            columns[name] = pd.Series(values, dtype=float)
    return pd.DataFrame(columns)
