"""Estimators for scikit-learn, samples first; importing them imports scikit-learn."""

from ..errors import MissingFeatureError

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise MissingFeatureError(
        "SequenceRegressor, SequenceClassifier and SequenceForecaster need scikit-learn: "
        "pip install 'scikit-learn>=1.6'"
    ) from error

from .classifier import SequenceClassifier
from .forecasting.forecast_losses import pinball_loss
from .forecasting.forecast_plot import plot_forecast
from .forecasting.forecaster import SequenceForecaster
from .regressor import SequenceRegressor

__all__ = [
    "SequenceClassifier",
    "SequenceForecaster",
    "SequenceRegressor",
    "pinball_loss",
    "plot_forecast",
]


def __dir__() -> list[str]:
    return __all__
