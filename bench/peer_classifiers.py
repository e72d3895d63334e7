"""Other packages' classifiers and regressors of series, as `bench_classify.py` runs them.

All are at their defaults. They take series of one length: shorter ones get zeros behind their ends,
longer ones than any in training are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

__all__ = ["PEERS", "Predict", "Series"]

Series: TypeAlias = "list[np.ndarray] | np.ndarray"  # (N, T, F), or a list of (T_i, F)
Predict: TypeAlias = Callable[[Series], np.ndarray]


def padded(x: Series, steps: int) -> np.ndarray:
    """Return series ``(N, T, F)`` of that many steps."""
    if isinstance(x, np.ndarray) and x.shape[1] == steps:
        return x
    found = np.zeros((len(x), steps, x[0].shape[1]), np.float32)
    for n, one in enumerate(x):
        found[n, : len(one)] = one[:steps]
    return found


def longest(x: Series) -> int:
    return max(map(len, x))


def of_aeon(make: Callable[..., Any]) -> Callable[..., Predict]:
    """Return a function that fits what `make` returns for a seed."""

    def fit(x: Series, y: np.ndarray, seed: int, *, numbers: bool) -> Predict:
        steps = max(longest(x), 9)  # MiniRocket's kernels have 9 steps
        model = make(seed, numbers=numbers).fit(padded(x, steps).swapaxes(1, 2), y)
        return lambda other: model.predict(padded(other, steps).swapaxes(1, 2))

    return fit


def minirocket(seed: int, *, numbers: bool) -> Any:
    if numbers:
        from aeon.regression.convolution_based import MiniRocketRegressor as Kind
    else:
        from aeon.classification.convolution_based import MiniRocketClassifier as Kind
    return Kind(random_state=seed)


def nearest(seed: int, *, numbers: bool) -> Any:  # noqa: ARG001
    if numbers:
        from aeon.regression.distance_based import KNeighborsTimeSeriesRegressor as Kind
    else:
        from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier as Kind
    return Kind(n_neighbors=1, distance="dtw")


def summary(x: Series) -> np.ndarray:
    """Return mean, deviation, extremes, last value and slope of each feature, ``(N, 6F)``."""
    rows = []
    for one in x:
        step = np.arange(len(one)) - (len(one) - 1) / 2
        slope = step @ one / max(float(step @ step), 1.0)
        parts = one.mean(0), one.std(0), one.min(0), one.max(0), one[-1], slope
        rows.append(np.concatenate(parts))
    return np.array(rows)


def linear_on_summary(x: Series, y: np.ndarray, seed: int, *, numbers: bool) -> Predict:  # noqa: ARG001
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    alphas = np.logspace(-3, 3, 10)
    kind = RidgeCV(alphas) if numbers else RidgeClassifierCV(alphas)
    model = make_pipeline(StandardScaler(), kind).fit(summary(x), y)
    return lambda other: np.asarray(model.predict(summary(other)))


class LSTMFCN(nn.Module):
    """As published (Karim et al. 2018), batch first."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        sizes, kernels = (n_in, 128, 256, 128), (8, 5, 3)
        self.convs = nn.Sequential(*(
            layer
            for a, b, k in zip(sizes, sizes[1:], kernels, strict=False)
            for layer in (nn.Conv1d(a, b, k, padding="same"), nn.BatchNorm1d(b), nn.ReLU())
        ))  # fmt: skip
        self.lstm = nn.LSTM(n_in, 8, batch_first=True)
        self.dropout, self.linear = nn.Dropout(0.8), nn.Linear(136, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shapes = self.convs(x.swapaxes(1, 2)).mean(2)
        last = self.dropout(self.lstm(x)[0][:, -1])
        found: torch.Tensor = self.linear(torch.cat([shapes, last], 1))
        return found


def skorch_lstm_fcn(x: Series, y: np.ndarray, seed: int, *, numbers: bool) -> Predict:
    """Fit by skorch at its defaults, but by Adam, and without a validation part."""
    import skorch

    torch.manual_seed(seed)
    steps = longest(x)
    classes, codes = np.unique(y, return_inverse=True)
    target = y[:, None].astype(np.float32) if numbers else codes
    kind = skorch.NeuralNetRegressor if numbers else skorch.NeuralNetClassifier
    more = {} if numbers else {"criterion": nn.CrossEntropyLoss}
    net = kind(
        LSTMFCN(x[0].shape[1], 1 if numbers else len(classes)), optimizer=torch.optim.Adam,
        train_split=None, verbose=0, **more,
    ).fit(padded(x, steps), target)  # fmt: skip

    def predict(other: Series) -> np.ndarray:
        found = net.predict(padded(other, steps))
        return found[:, 0] if numbers else classes[found]

    return predict


PEERS: dict[str, Callable[..., Predict]] = {
    "MiniRocket": of_aeon(minirocket),
    "1-NN DTW": of_aeon(nearest),
    "skorch LSTM-FCN": skorch_lstm_fcn,
    "summary + linear": linear_on_summary,
}
