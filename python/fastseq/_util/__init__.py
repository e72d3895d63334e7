"""Small tools that know nothing of sequences."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
