"""What samples are read from: arrays, lists, frames, datasets in files, columns of categories."""

__all__: list[str] = []


def __dir__() -> list[str]:
    return __all__
