"""Data: the order of slices (`chunks`), what they are read from (`sources`), reading ahead."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
