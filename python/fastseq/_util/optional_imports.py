"""Optional packages, imported when a function needs them."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import MissingFeatureError

__all__ = ["need"]


def need(module: str, user: str) -> Any:
    """Import an optional package.

    Parameters
    ----------
    module
        What to import, such as ``"sklearn.metrics"``.
    user
        What needs it: the start of the error message if the package is missing.

    Raises
    ------
    MissingFeatureError
        It is not installed.

    Examples
    --------
    >>> need("json", "this example").dumps([1])
    '[1]'
    >>> need("no_such_package", "this example")
    Traceback (most recent call last):
    fastseq.errors.MissingFeatureError: this example needs the package no_such_package:
    pip install no_such_package
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = getattr(error, "name", None) or ""
        if missing.partition(".")[0] != package:
            raise  # it is installed, but a package that it needs is missing or broken
        distribution = _DISTRIBUTIONS.get(package, package)
        raise MissingFeatureError(
            f"{user} needs the package {distribution}: pip install {distribution}"
        ) from error


_DISTRIBUTIONS = {"ray": "ray[tune]", "sklearn": "scikit-learn", "yaml": "PyYAML"}
