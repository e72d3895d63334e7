"""Run models over whole series, and write their outputs."""

from .predictor import Predictor

__all__ = ["Predictor"]
