"""Packages that only some functions need, imported when one of these is used."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import MissingFeatureError

__all__ = ["need"]


def need(module: str, extra: str, user: str) -> Any:
    """Import a package that comes with one of fastseq's extras.

    Parameters
    ----------
    module
        What to import, such as ``"sklearn.metrics"``.
    extra
        The extra that brings it.
    user
        What needs it: the begin of the message where it is not there.

    Raises
    ------
    MissingFeatureError
        It is not installed.

    Examples
    --------
    >>> need("json", "plot", "this example").dumps([1])
    '[1]'
    >>> need("no_such_package", "plot", "this example")
    Traceback (most recent call last):
    fastseq.errors.MissingFeatureError: this example needs the package no_such_package:
    pip install 'fastseq[plot]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = getattr(error, "name", None) or ""
        if missing.partition(".")[0] != package:
            raise  # it is there, but what it needs itself is not, or is broken
        raise MissingFeatureError(
            f"{user} needs the package {_DISTRIBUTIONS.get(package, package)}: "
            f"pip install 'fastseq[{extra}]'"
        ) from error


_DISTRIBUTIONS = {"sklearn": "scikit-learn"}
