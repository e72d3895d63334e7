"""Checkpoints: save a training run in a file, and continue it from there."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
