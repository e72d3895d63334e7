"""The scikit-learn estimators in files: `save` and `load`."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
