"""Kinds of targets: what a classifier or regressor learns, and how predictions come back."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
