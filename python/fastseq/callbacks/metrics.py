"""Metrics per epoch: scikit-learn's, by name, and functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from .._util.optional_imports import need
from ..inference.samples import Samples, samples
from ..training.run import Callback
from .metric_inputs import classes_of, column, takes_weights, weights_of

if TYPE_CHECKING:
    from ..training.run import Run

__all__ = ["Metrics"]

_Array = np.ndarray
_RESERVED = ("epoch", "loss", "validation_loss", "lr", "updates", "seconds", "updates_per_second")


class Metrics(Callback):
    """Add metrics to each epoch's row of the history.

    They are computed after the epoch, from predictions in evaluation mode, on the validation part
    (``"validation_r2"``) and on request on the training part (``"r2"``), over the samples of all
    ranks. Samples left out by a mask, a length or a weight of 0 do not count. Scaled targets are
    measured in their own units. Validation by time continues from the final states of training.

    Callbacks run in the given order: put `Metrics` before those that read its values.

    Parameters
    ----------
    *metrics
        Scikit-learn's names (``"r2"``, ``"neg_mean_absolute_error"``, ``"accuracy"``,
        ``"f1_macro"``, ``"roc_auc"``; see `sklearn.metrics.get_scorer_names`), or functions
        ``fn(y_true, y_pred)``, listed under their own names. They get arrays ``(n,)``, or
        ``(n, K)`` for several features, in no particular order, and return a number. Those that
        take ``sample_weight`` get weights.
    train
        Also compute them on the training part: this costs another pass over it.
    **named
        More metrics, with the names to list them under.

    Notes
    -----
    Integer or boolean targets are classes, and `y_pred` is the class: the argmax of outputs
    ``(n, C)``; for outputs in the shape of the targets (one logit), whether they are positive.
    The same holds for scikit-learn's classification metrics if targets are floats 0 and 1.

    Where some of a sample's targets are missing (``spec.nan="mask"``), a metric is computed for
    each target from its known values, and the mean is returned.

    Raises
    ------
    ValueError
        A name is unknown or already in the history, or there is nothing to compute on.
    TypeError
        A metric is neither a name nor a function.
    MissingFeatureError
        Names need scikit-learn.

    Examples
    --------
    >>> import fastseq as fs
    >>> from torch.nn.functional import mse_loss
    >>> x = torch.randn(20, 8, 3)
    >>> metrics = fs.callbacks.Metrics("r2", worst=lambda y, p: abs(y - p).max())
    >>> est = fs.Estimator(
    ...     nn.Linear(3, 1), fs.seqloss(mse_loss), torch.optim.Adam,
    ...     dict(epochs=2, batchsize=4, seqsize=10), callbacks=[metrics], progress=False,
    ... )
    >>> [*est.fit(x, x[..., :1], validation=0.25).history_[-1]][-2:]
    ['validation_r2', 'validation_worst']
    """

    def __init__(
        self,
        *metrics: str | Callable[[_Array, _Array], float],
        train: bool = False,
        **named: str | Callable[[_Array, _Array], float],
    ) -> None:
        self._metrics: dict[str, Callable[[Samples], float]] = {}
        for metric in metrics:
            self._add(metric if isinstance(metric, str) else _Function(metric).name, metric)
        for name, metric in named.items():
            self._add(name, metric)
        if not self._metrics:
            raise ValueError('Metrics needs at least one metric, such as Metrics("r2")')
        self._train = train

    def _add(self, name: str, metric: object) -> None:
        if name in self._metrics or name in _RESERVED:
            raise ValueError(
                f"Metrics: the history has a column {name!r} already; give the metric another name"
            )
        self._metrics[name] = _named(metric) if isinstance(metric, str) else _Function(metric)

    def on_fit_begin(self, run: Run) -> None:
        """Raise if there is nothing to compute on.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            There is no validation part, and the training part is not asked for.
        """
        if run.validation is None and not self._train:
            raise ValueError(
                "Metrics has nothing to compute on: pass validation to fit, or train=True to "
                "Metrics"
            )

    def on_epoch_end(self, run: Run) -> None:
        """Compute the metrics and add them to ``run.row``.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            A metric has failed; the message names it, and the error.
        """
        part = run.validation
        if self._train:
            self._measure(run, samples(run.learner, run.data), "")
        if part is not None:
            found = samples(run.learner, part.data, states=run.ends, warmup=part.warmup)
            self._measure(run, found, "validation_")

    def _measure(self, run: Run, found: Samples, prefix: str) -> None:
        for name, metric in self._metrics.items():
            value = math.nan
            if run.first:  # broadcast: other ranks' numbers may differ in the last bits
                try:
                    parts = list(_targets(found))
                    value = sum(float(metric(part)) for part in parts) / len(parts)
                except Exception as error:
                    part = "validation" if prefix else "training"
                    raise ValueError(
                        f"the metric {name!r} failed on the {part} part: {error}"
                    ) from error
            run.row[prefix + name] = run.same(value)


def _targets(samples: Samples) -> Iterator[Samples]:
    """Yield all samples; if some of their targets are missing, each target's samples."""
    y_true, y_pred, weights = samples
    if weights.ndim == 1:
        yield samples
        return
    for k in np.ndindex(weights.shape[1:]):
        of_target = (slice(None), *k)
        there = weights[of_target] > 0
        if there.any():
            true, predicted = y_true[of_target][there], y_pred[of_target][there]
            yield Samples(true[:, None], predicted[:, None], weights[of_target][there])


class _Function:
    """A user's function of targets and predictions."""

    def __init__(self, function: object) -> None:
        if not callable(function):
            raise TypeError(
                f"a metric must be a name or a function of (y_true, y_pred), got {function!r}"
            )
        named = getattr(function, "func", function)  # the function in a functools.partial
        self.name = str(getattr(named, "__name__", type(named).__name__))
        self._function: Callable[..., float] = function
        self._takes_weights = takes_weights(function)

    def __call__(self, samples: Samples) -> float:
        y_true, y_pred = samples.y_true, samples.y_pred
        if y_true.dtype.kind in "iub":
            y_pred = classes_of(y_pred, one_logit=y_true.shape == y_pred.shape)
        weights = weights_of(samples) if self._takes_weights else {}
        return self._function(column(y_true), column(y_pred), **weights)


def _named(name: str) -> Callable[[Samples], float]:
    need("sklearn", f"the metric {name!r}")
    from .scikit_learn_metrics import NamedMetric

    return NamedMetric(name)
