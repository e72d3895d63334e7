"""Parquet files and Arrow tables in long form: read by row groups, as sequences."""

from .long_table import LongTable

__all__ = ["LongTable"]


def __dir__() -> list[str]:
    return __all__
