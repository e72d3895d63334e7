"""Scikit-learn's metrics of a model's outputs, treated as a fitted scikit-learn estimator.

Needs scikit-learn: imported only if one of its names is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names

from .._util.spelling import meant
from ..inference.samples import Samples
from .metric_inputs import classes_of, column, takes_weights, weights_of

__all__ = ["NamedMetric"]

# Regression metrics; all others are for classes.
_ON_NUMBERS = (
    "r2", "explained_variance", "d2_absolute_error_score", "max_error", "neg_max_error",
    "neg_mean_", "neg_median_", "neg_root_",
)  # fmt: skip


class NamedMetric:
    """A scikit-learn metric.

    Parameters
    ----------
    name
        One of `sklearn.metrics.get_scorer_names`.

    Raises
    ------
    ValueError
        The name is unknown.

    Examples
    --------
    >>> y, ones = np.array([[1.0], [3.0]]), np.ones(2)
    >>> NamedMetric("neg_mean_absolute_error")(Samples(y, y + 1, ones))
    -1.0
    """

    def __init__(self, name: str) -> None:
        self._on_numbers = name.startswith(_ON_NUMBERS)
        try:
            self._scorer = get_scorer(name)
        except ValueError:
            names = get_scorer_names()
            raise ValueError(
                f"{name!r} is not one of scikit-learn's metrics{meant(name, names) or '.'} Choose "
                f"from {', '.join(names)}"
            ) from None
        function: Callable[..., object] = self._scorer._score_func
        self._takes_weights = takes_weights(function)

    def __call__(self, samples: Samples) -> float:
        """Compute the metric."""
        y_true = column(samples.y_true)
        weights = weights_of(samples) if self._takes_weights else {}
        if self._on_numbers:
            return float(self._scorer(_Regressor(), samples.y_pred, y_true, **weights))
        classes = _Classifier(one_logit=samples.y_true.shape == samples.y_pred.shape)
        count = samples.y_pred.shape[-1]
        classes.classes_ = np.arange(max(2, count))
        if classes.one_logit and count > 1:  # as many labels, each with these classes
            classes.classes_ = [np.arange(2)] * count
        return float(self._scorer(classes, samples.y_pred, y_true.astype(np.int64), **weights))


class _Regressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Its inputs are a model's outputs."""

    def fit(self, *_: object) -> _Regressor:  # scikit-learn recognizes estimators by it
        return self

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        return column(outputs)


class _Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Its inputs are a model's outputs: logits of all classes, or one logit for each target."""

    classes_: np.ndarray | list[np.ndarray]

    def __init__(self, *, one_logit: bool = False) -> None:
        self.one_logit = one_logit

    def fit(self, *_: object) -> _Classifier:  # scikit-learn recognizes estimators by it
        return self

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        return column(classes_of(outputs, one_logit=self.one_logit))

    def decision_function(self, outputs: np.ndarray) -> Any:
        if not self.one_logit and outputs.shape[-1] == 2:
            return outputs[:, 1] - outputs[:, 0]
        return column(outputs)

    def predict_proba(self, outputs: np.ndarray) -> Any:
        outputs = outputs.astype(np.float64)
        if self.one_logit and outputs.shape[-1] > 1:
            return 1 / (1 + np.exp(-outputs))
        if self.one_logit:
            outputs = np.hstack([np.zeros_like(outputs), outputs])
        odds = np.exp(outputs - outputs.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)
