"""`SearchSpace`: hyperparameters to search over, from a YAML file."""

from __future__ import annotations

import dataclasses
import math
import os
from decimal import Decimal
from typing import Any

from ._util.arguments import number_in
from ._util.optional_imports import need
from ._util.settings_file import read_settings
from .errors import meant

__all__ = ["SearchSpace"]

_OF_A_RANGE = ("low", "high", "log", "step")


@dataclasses.dataclass(frozen=True)
class _Range:
    """Numbers from `low` to `high`, both included; integers if both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


class SearchSpace:
    r"""Hyperparameters to search over, from a YAML file.

    Each name has a list of choices, a range, or one value::

        module: [gru, lstm]
        lr: {low: 0.001, high: 0.1, log: true}
        hidden_size: {low: 4, high: 64, step: 4}
        epochs: 10

    Numbers without a point or exponent are integers, and a range is one of integers if both ends
    are; ends are included. Words are texts, but for true, false and none.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        The file is no such YAML: the message names the hyperparameter.
    OSError
        It cannot be read.
    MissingFeatureError
        PyYAML is not installed.

    Examples
    --------
    >>> import optuna, pathlib, tempfile
    >>> import fastseq as fs
    >>> path = pathlib.Path(tempfile.mkdtemp(), "space.yaml")
    >>> _ = path.write_text("lr: {low: 1e-3, high: 0.1, log: true}\nepochs: 2")
    >>> space = fs.SearchSpace(path)
    >>> space.suggest(optuna.trial.FixedTrial({"lr": 0.01}))
    {'lr': 0.01, 'epochs': 2}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        settings = read_settings(path)
        self._entries = {name: _read(path, name, given) for name, given in settings.items()}

    def __repr__(self) -> str:
        return f"SearchSpace({', '.join(self._entries)})"

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return an Optuna trial's values, by name; those of one value as they are."""
        return {name: _suggested(trial, name, entry) for name, entry in self._entries.items()}

    def for_ray(self) -> dict[str, Any]:
        """Return the ``param_space`` of a `ray.tune.Tuner`; a range with a step as choices.

        Raises
        ------
        MissingFeatureError
            Ray Tune is not installed.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import fastseq as fs
        >>> path = pathlib.Path(tempfile.mkdtemp(), "space.yaml")
        >>> _ = path.write_text("layers: {low: 1, high: 2}")
        >>> fs.SearchSpace(path).for_ray()["layers"].domain_str  # Ray leaves out the end
        '(1, 3)'
        """
        tune = need("ray.tune", "SearchSpace.for_ray")
        return {name: _domain(tune, entry) for name, entry in self._entries.items()}


def _suggested(trial: Any, name: str, entry: Any) -> Any:
    if isinstance(entry, list):
        return trial.suggest_categorical(name, entry)
    if not isinstance(entry, _Range):
        return entry
    if isinstance(entry.low, int) and isinstance(entry.high, int):
        return trial.suggest_int(name, entry.low, entry.high, step=entry.step or 1, log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)


def _domain(tune: Any, entry: Any) -> Any:
    if isinstance(entry, list):
        return tune.choice(entry)
    if not isinstance(entry, _Range):
        return entry
    low, high = entry.low, entry.high
    if isinstance(low, int) and isinstance(high, int):
        if entry.step in (None, 1):
            return (tune.lograndint if entry.log else tune.randint)(low, high + 1)
        return tune.choice(list(range(low, high + 1, int(entry.step or 1))))
    if entry.step is None:
        return (tune.loguniform if entry.log else tune.uniform)(low, high)
    # Ray's own steps start at 0 instead of at the low end, and draw the ends half as often.
    start, end, step = (Decimal(str(number)) for number in (low, high, entry.step))
    return tune.choice([float(start + k * step) for k in range(int((end - start) // step) + 1)])


def _read(path: str | os.PathLike[str], name: str, given: Any) -> Any:
    try:
        return _entry(given)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {name} {error}") from None


def _entry(given: Any) -> Any:
    if isinstance(given, dict):
        return _range({key: _typed(value) for key, value in given.items()})
    if not isinstance(given, list):
        return _typed(given)
    choices = [_typed(choice) for choice in given]
    if not choices:
        raise ValueError("has no choices")
    return choices


def _range(given: dict[str, Any]) -> _Range:
    for key in given:
        if key not in _OF_A_RANGE:
            raise ValueError(f"is a range, which has no {key!r}{meant(key, _OF_A_RANGE)}")
    log = given.pop("log", False)
    numbers = all(type(value) in (int, float) for value in given.values())
    if not numbers or not {"low", "high"} <= set(given) or not isinstance(log, bool):
        raise ValueError("must be a range such as {low: 0.001, high: 0.1, log: true}")
    found = _Range(log=log, **given)
    if not all(math.isfinite(value) for value in given.values()) or found.low >= found.high:
        raise ValueError(f"has the range from {found.low} to {found.high}: low must be less")
    if log and (found.low <= 0 or found.step is not None):
        raise ValueError("is logarithmic, so low must be positive, and there is no step")
    whole = type(found.low) is type(found.high) is int
    if found.step is not None and (found.step <= 0 or (whole and type(found.step) is not int)):
        raise ValueError(f"has the step {found.step}, which must be positive, as whole as the ends")
    return found


def _typed(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f"must be values, lists of them, or ranges, got {text!r} in it")
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    number = number_in(text, (int, float))
    return text if number is None else number
