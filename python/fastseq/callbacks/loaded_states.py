"""States that callbacks load: a file may hold anything where they expect numbers or weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["check_numbers", "kinds_of", "numbers_like"]


def check_numbers(**numbers: object) -> None:
    """Raise `ValueError` unless all are numbers; the message has the name of one that is not.

    Examples
    --------
    >>> check_numbers(epoch=1, value=0.5)
    >>> check_numbers(epoch="x")
    Traceback (most recent call last):
    ValueError: the state of a callback has epoch='x', which must be a number
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"the state of a callback has {name}={value!r:.100}, which must be a number"
            )


def numbers_like(state: Any, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state has by the names of the `first` one: numbers where that has them.

    None in `first` stands for a number that is not there yet. Lists of numbers may have any length.

    Raises
    ------
    ValueError
        It is another one's.

    Examples
    --------
    >>> numbers_like({"best": 0.5, "strip": (1.0, 2.0)}, {"best": None, "strip": []})
    {'best': 0.5, 'strip': [1.0, 2.0]}
    """
    if not isinstance(state, dict) or not set(first) <= set(state):
        raise ValueError(
            f"the state of a callback must have {' and '.join(first)}, got {state!r:.100}"
        )
    found = {}
    for name, start in first.items():
        value = state[name]
        if isinstance(start, list) and isinstance(value, list | tuple):
            value = list(value)
            check_numbers(**{f"{name}[{i}]": number for i, number in enumerate(value)})
        elif value is not None or start is not None:
            check_numbers(**{name: value})
        found[name] = value
    return found


def kinds_of(weights: Mapping[str, object]) -> dict[str, str]:
    """Return what must be alike if weights are to be loaded into a model.

    Examples
    --------
    >>> from torch import nn
    >>> kinds_of(nn.Linear(2, 1).state_dict())
    {'weight': 'torch.float32 (1, 2)', 'bias': 'torch.float32 (1,)'}
    """
    return {
        name: f"{a.dtype} {tuple(a.shape)}" if isinstance(a, Tensor) else type(a).__name__
        for name, a in weights.items()
    }
