"""A classifier or regressor behind the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..sklearn import SequenceClassifier, SequenceRegressor
from ..sklearn.targets.class_kinds import Labels
from .json_values import listed
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
        self._model = model
        self._names = _plain_names(model)
        self.record_type, self.static_type = record_type(model), static_type(model)
        self.classes: list[Any] | None = None  # of one target
        self.probabilities = False
        form = model._form_of_targets
        if isinstance(model, SequenceClassifier):
            labels = isinstance(model._kind, Labels)
            self.probabilities = labels or form.count == 1
            if self.probabilities and not labels:
                self.classes = model.classes_.tolist()
        self.metadata: dict[str, Any] = {
            "features": int(model.n_features_in_),
            "targets": form.count,
            "per_step": form.per_step,
            "classes": self.classes,
            "trained_epochs": int(model.n_iter_),
        }

    def run(self, pairs: Sequence[tuple[Any, Any]]) -> list[Answer]:
        """Return the answers to records."""
        model = self._model
        x = self._inputs([record for record, _ in pairs])
        static = None
        if self.static_type is not None:
            static = self._table([row for _, row in pairs], self._static_names())
        outputs = model._outputs(x, static)
        if isinstance(model, SequenceRegressor):
            found = model._form_of_targets.restored(outputs)
            return [Answer(listed(one)) for one in found]
        labels = model._labels(outputs)
        if not self.probabilities:
            return [Answer(listed(one)) for one in labels]
        chances = model._probabilities(outputs)
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
        if self._names is None:
            lengths = set(map(len, records))
            return np.array(records, float) if len(lengths) == 1 else _ragged(records)
        if self._model.rows_ == "samples":
            return self._table(records, self._names)
        import pandas as pd

        steps = [step for record in records for step in record]
        table = self._table(steps, self._names)
        counts = list(map(len, records))
        of = np.repeat(np.arange(len(records)), counts)
        place = np.concatenate([np.arange(count) for count in counts])
        table.index = pd.MultiIndex.from_arrays([of, place])
        return table

    def _static_names(self) -> list[str] | None:
        names = self._model._columns.static.names  # type: ignore[union-attr]  # there are some
        return None if names is None else list(names)

    @staticmethod
    def _table(rows: list[Any], names: list[str] | None) -> Any:
        """Return rows as a data frame, or as an array if they are lists."""
        if names is None:
            return np.array(rows, float)
        import pandas as pd

        values = [[getattr(row, f"column_{place}") for row in rows] for place in range(len(names))]
        return pd.DataFrame({name: pd.Series(own) for name, own in zip(names, values, strict=True)})


def _plain_names(model: SequenceClassifier | SequenceRegressor) -> list[str] | None:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None or model.rows_ == "series" else list(names)


def _ragged(records: list[Any]) -> list[np.ndarray]:
    return [np.array(record, float) for record in records]
