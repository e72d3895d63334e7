"""Run models over whole series, and write their outputs."""

from .predictor import Predictor

__all__ = ["Predictor"]


def __dir__() -> list[str]:
    return __all__
