"""How features are scaled: measured on the data, applied and undone in fp64."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
