"""Running models over whole series, and where their outputs go."""

from .predictor import Predictor

__all__ = ["Predictor"]
