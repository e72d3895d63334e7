"""`SearchSpace`: hyperparameters to search over, from a YAML file."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from decimal import Decimal
from typing import Any

from ._util.arguments import check_names, check_types, number_in
from ._util.optional_imports import need
from ._util.settings_file import Quoted, read_settings
from ._util.spelling import meant

__all__ = ["SearchSpace"]

_OF_A_RANGE = ("low", "high", "log", "step")
# What other libraries' files have in their place.
_OF_CHOICES = ": write choices as a list, such as [gru, lstm]"
_OF_KINDS = ": a range is uniform, or with log: true logarithmic, of integers if both ends are"
_INSTEAD = {
    **dict.fromkeys(("choice", "choices", "values", "categorical", "grid"), _OF_CHOICES),
    **dict.fromkeys(("type", "distribution", "dtype", "sampler"), _OF_KINDS),
    **dict.fromkeys(("min", "lower", "start"), ': did you mean "low"?'),
    **dict.fromkeys(("max", "upper", "end", "stop"), ': did you mean "high"?'),
    "value": ": {value: …} is one value, without a range",
}
_NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Range:
    """Numbers from `low` to `high`, both included; integers if both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclasses.dataclass(frozen=True)
class _List:
    """One value that is a list."""

    values: tuple[Any, ...]


class SearchSpace:
    r"""Hyperparameters to search over, from a YAML file.

    Each name has a list of choices, a range, or one value; one that is a list is written apart::

        module: [gru, lstm]
        lr: {low: 0.001, high: 0.1, log: true}
        hidden_size: {low: 4, high: 64, step: 4}
        epochs: 10
        quantiles: {value: [0.1, 0.9]}

    Numbers without a point or exponent are integers, and a range is one of integers if both ends
    are: ``{low: 0, high: 1}`` is 0 and 1 alone. Ends are included. Words are texts, but for true,
    false and none; what is in quotes is a text.

    Parameters
    ----------
    path
        The file.
    of
        The class that the hyperparameters are of, such as `SequenceRegressor`: names that it does
        not have, and values of a wrong type, are then found here, rather than in a trial. None:
        nothing is checked.

    Raises
    ------
    ValueError
        The file is no such YAML, or does not fit `of`: the message names the hyperparameter.
    TypeError
        `of` is not a class.
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

    def __init__(self, path: str | os.PathLike[str], *, of: type | None = None) -> None:
        if not (of is None or isinstance(of, type)):
            raise TypeError(f"of must be a class such as fastseq.SequenceRegressor, got {of!r}")
        settings = read_settings(path)
        self._entries = {name: _read(path, name, given) for name, given in settings.items()}
        if of is not None:
            _check(path, of, self._entries)

    def __repr__(self) -> str:
        return f"SearchSpace({', '.join(self._entries)})"

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return a trial's values, by name; those of one value as they are.

        Parameters
        ----------
        trial
            An `optuna.Trial`, or one of Optuna's stand-ins.

        Returns
        -------
        dict
            Arguments for an estimator: ``SequenceRegressor(**space.suggest(trial))``.
        """
        return {name: _suggested(trial, name, entry) for name, entry in self._entries.items()}

    def for_ray(self) -> dict[str, Any]:
        """Return the ``param_space`` of a `ray.tune.Tuner`; a range with a step as choices.

        Returns
        -------
        dict
            Ray's domains by name; those of one value as they are.

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
    if isinstance(entry, _List):
        return list(entry.values)
    if not isinstance(entry, _Range):
        return entry
    if isinstance(entry.low, int) and isinstance(entry.high, int):
        return trial.suggest_int(name, entry.low, entry.high, step=entry.step or 1, log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)


def _domain(tune: Any, entry: Any) -> Any:
    if isinstance(entry, list):
        return tune.choice(entry)
    if isinstance(entry, _List):
        return list(entry.values)
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
        if list(given) == ["value"]:
            return _fixed(given["value"])
        return _range(given)
    if not isinstance(given, list):
        return _typed(given)
    choices = [_typed(choice) for choice in given]
    if not choices:
        raise ValueError("has no choices")
    return choices


def _fixed(given: Any) -> Any:
    if not isinstance(given, list):
        return _typed(given)
    return _List(tuple(_typed(part) for part in given))


def _range(texts: dict[str, Any]) -> _Range:
    for key in texts:
        if key not in _OF_A_RANGE:
            advice = _INSTEAD.get(key.lower()) or meant(key, _OF_A_RANGE)
            raise ValueError(f"is a range, which has no {key!r}{advice}")
    given = {key: _typed(value) for key, value in texts.items()}
    log = given.pop("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"has log: {log}, which must be true or false")
    numbers = all(type(value) in (int, float) for value in given.values())
    if not numbers or not {"low", "high"} <= set(given):
        raise ValueError("must be a range such as {low: 0.001, high: 0.1, log: true}")
    found = _Range(log=log, **given)
    if found.low >= found.high:
        raise ValueError(f"has the range from {found.low} to {found.high}: low must be less")
    if log and (found.low <= 0 or found.step is not None):
        raise ValueError("is logarithmic, so low must be positive, and step must be left out")
    whole = type(found.low) is type(found.high) is int
    if found.step is not None and (found.step <= 0 or (whole and type(found.step) is not int)):
        raise ValueError(
            f"has the step {found.step}, which must be positive, and an integer as its ends"
        )
    return found


def _typed(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(
            f"must be values, lists of them, or ranges, got {text!r:.100} in it: for one list "
            "write {value: [0.1, 0.9]}"
        )
    if isinstance(text, Quoted):
        return str(text)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.lower() in ("yes", "no", "on", "off"):  # a text would be true, whatever it says
        raise ValueError(
            f"has the value {text}: write true or false, or '{text}' in quotes for a text"
        )
    number = number_in(text, (int, float))
    if _NOT_FINITE.fullmatch(text) or (isinstance(number, float) and math.isinf(number)):
        raise ValueError(
            f"has the value {text}, but numbers must be finite: write '{text}' in quotes for a text"
        )
    return text if number is None else number


def _check(path: str | os.PathLike[str], of: type, entries: dict[str, Any]) -> None:
    """Raise unless a class's constructor takes these names, and values of their types."""
    try:
        check_names(of, entries)
        for name, entry in entries.items():
            for value in _some_values(entry):
                check_types(of, {name: value})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _some_values(entry: Any) -> list[Any]:
    """Return values that a trial may get, of all types that there are."""
    if isinstance(entry, _Range):
        return [entry.low, entry.high]
    if isinstance(entry, _List):
        return [list(entry.values)]
    return entry if isinstance(entry, list) else [entry]
