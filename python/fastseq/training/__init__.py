"""The training loop, its settings and its history."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
