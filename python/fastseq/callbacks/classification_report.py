"""How well each class is recognised: a report and a confusion matrix, when `fit` ends."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.figures import new_figure
from .._util.optional_imports import need
from ..inference.samples import Samples, samples
from ..training.run import Callback
from .best_weights import RestoreBest
from .metric_inputs import classes_of, column, weights_of
from .trackers import Tracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..training.run import Run

__all__ = ["ClassificationReport"]


class ClassificationReport(Callback):
    """Report on the classes of the validation part, when `fit` ends; trackers log it.

    It is scikit-learn's: precision, recall, F1 score and number of samples of each class, and the
    confusion matrix. Samples of all ranks count, but for those left out by a mask, a length or a
    weight of 0. Targets 0.0 and 1.0 of one logit are classes, too. `TensorBoard` and `MLflow` log
    both. What cannot be reported on is a warning when `fit` ends.

    `fit` ends callbacks from the last to the first: put it behind trackers, so that it is there
    when they end, and before `RestoreBest`, so that it sees the best weights.

    Parameters
    ----------
    class_names
        Names of the classes 0, 1, …; None: their numbers, or in a `SequenceClassifier` its labels,
        with ``loss="ordinal"`` in their order.

    Attributes
    ----------
    report
        What `sklearn.metrics.classification_report` returns as a dictionary; None before.
    matrix
        ``(C, C)``: sums of the weights, or numbers, of the samples of class i that were taken for
        class j; None before.

    Raises
    ------
    TypeError
        `class_names` is a string, or no list.
    ValueError
        When `fit` begins: there is no validation part, or another callback is on the wrong side.
    MissingFeatureError
        scikit-learn is not installed.

    Examples
    --------
    >>> import fastseq as fs
    >>> x = torch.randn(20, 8, 3)
    >>> report = fs.callbacks.ClassificationReport(["falls", "rises"])
    >>> est = fs.Estimator(
    ...     nn.Linear(3, 2), fs.seqloss(nn.functional.cross_entropy), torch.optim.Adam,
    ...     dict(epochs=2, batchsize=4, seqsize=10), callbacks=[report], progress=False,
    ... )
    >>> est = est.fit(x, (x[..., 0] > 0).long(), validation=0.25)
    >>> [*report.report["rises"]], report.matrix.shape
    (['precision', 'recall', 'f1-score', 'support'], (2, 2))
    """

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        need("sklearn", "callbacks.ClassificationReport")
        if isinstance(class_names, str):
            raise TypeError(f"class_names must be a list of names, got {class_names!r}")
        self.class_names: list[str] | None = (
            None if class_names is None else [str(name) for name in class_names]
        )
        self.report: dict[str, Any] | None = None
        self.matrix: np.ndarray | None = None
        self._text = ""
        self._names: list[str] = []
        self._labels: list[str] | None = None

    def __str__(self) -> str:
        return self._text or "ClassificationReport: fit has not ended"

    def name_classes(self, labels: Iterable[object] | None) -> None:
        """Set what the classes are called unless there are `class_names`: a classifier does.

        Parameters
        ----------
        labels
            What the classes 0, 1, … are called; None: their numbers.
        """
        self._labels = None if labels is None else [str(label) for label in labels]

    def on_fit_begin(self, run: Run) -> None:
        """Raise if there is nothing to report on.

        Parameters
        ----------
        run
            This call of `fit`.

        Raises
        ------
        ValueError
            There is no validation part, or another callback is on the wrong side.
        """
        if run.validation is None:
            raise ValueError(
                "ClassificationReport has nothing to report on: pass validation to fit"
            )
        self.report, self.matrix, self._text = None, None, ""
        own = next(i for i, callback in enumerate(run.callbacks) if callback is self)
        wrong: dict[str, list[object]] = {
            "before": [c for c in run.callbacks[:own] if isinstance(c, RestoreBest)],
            "behind": [c for c in run.callbacks[own:] if isinstance(c, Tracker)],
        }
        for side, callbacks in wrong.items():
            for callback in callbacks:
                raise ValueError(
                    f"put ClassificationReport {side} {type(callback).__name__} in callbacks: fit "
                    "ends them from the last to the first"
                )

    def on_fit_end(self, run: Run) -> None:
        """Make the report, unless `fit` has failed.

        Parameters
        ----------
        run
            This call of `fit`.
        """
        part = run.validation
        if run.error is not None or part is None:
            return
        found = samples(run.learner, part.data, states=run.ends, warmup=part.warmup)
        problem = self._problem(found)
        if problem:  # the training is not lost
            warnings.warn(f"ClassificationReport: {problem}", RuntimeWarning, stacklevel=2)
            return
        one_logit = found.y_true.shape == found.y_pred.shape
        predicted = column(classes_of(found.y_pred, one_logit=one_logit))
        self._measure(column(found.y_true).astype(int), predicted, weights_of(found))

    def _problem(self, found: Samples) -> str:
        """Return why there can be no report; set the names if there can."""
        one_logit = found.y_true.shape == found.y_pred.shape
        y_true = found.y_true
        if y_true.dtype.kind not in "iub" and not (one_logit and np.isin(y_true, (0, 1)).all()):
            return f"it is for classes, which are integers; the targets are {y_true.dtype}"
        if found.weights.ndim > 1 or column(y_true).ndim > 1:
            return "it is for one class of each sample; the targets have several"
        count = 2 if one_logit else found.y_pred.shape[-1]
        self._names = self.class_names or self._labels or [str(k) for k in range(count)]
        if len(self._names) != count:
            return f"class_names has {len(self._names)} names, but there are {count} classes"
        return ""

    def _measure(self, y_true: np.ndarray, y_pred: np.ndarray, weights: dict[str, Any]) -> None:
        from sklearn.metrics import classification_report, confusion_matrix

        labels = list(range(len(self._names)))
        more = {"labels": labels, "target_names": self._names, "zero_division": 0, **weights}
        self.report = classification_report(y_true, y_pred, output_dict=True, **more)
        self._text = classification_report(y_true, y_pred, **more)
        self.matrix = confusion_matrix(y_true, y_pred, labels=labels, **weights)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the confusion matrix (needs matplotlib); rows are the true classes.

        Parameters
        ----------
        ax
            Where to draw; None: a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            The axes; ``ax.figure.savefig("confusion.png")`` saves the figure.

        Raises
        ------
        ValueError
            `fit` has not ended.
        MissingFeatureError
            matplotlib is not installed.
        """
        if self.matrix is None:
            raise ValueError("there is no confusion matrix before fit has ended")
        need("matplotlib", "ClassificationReport.plot")
        from sklearn.metrics import ConfusionMatrixDisplay

        if ax is None:
            side = 3.0 + 0.35 * len(self._names)
            size = (side * 1.15, side)
            ax = new_figure("plot", figsize=size, layout="constrained").add_subplot()
        display = ConfusionMatrixDisplay(self.matrix, display_labels=self._names)
        display.plot(ax=ax, xticks_rotation=45 if len(self._names) > 4 else 0, cmap="Blues")
        return ax

    def artifacts(self) -> dict[str, Any]:
        """Return what trackers log.

        Returns
        -------
        dict
            ``"classification report"``, the text, and with matplotlib ``"confusion matrix"``, a
            figure; empty: there is no report.
        """
        if self.matrix is None:
            return {}
        found: dict[str, Any] = {"classification report": self._text}
        if importlib.util.find_spec("matplotlib") is not None:
            found["confusion matrix"] = self.plot().figure
        return found
