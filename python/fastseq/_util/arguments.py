"""Constructors' arguments as options on the command line, from their types and docstrings."""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import functools
import inspect
import itertools
import numbers
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from .spelling import meant

__all__ = [
    "FromArguments",
    "check_flags",
    "check_names",
    "check_types",
    "descriptions",
    "meant_by",
    "number_in",
    "values_of",
]

_SECTION = r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)"
_ENTRY = r"^(\S[^\n]*)\n((?: +[^\n]*\n?|\n)*)"
Own = TypeVar("Own", bound="FromArguments")
_KINDS = (bool, int, float, str)
_LISTED = "A,B,..."
_METAVARS = {bool: "BOOL", int: "N", float: "X", str: "NAME"}
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}


@dataclasses.dataclass(frozen=True)
class _Option:
    """An argument of a constructor that text can express.

    Parameters
    ----------
    name
        Its name.
    single, many
        Types of a value, and of the elements of a sequence of them.
    none
        Whether it may be None.
    others
        Whether it may be something else that text cannot express.
    default
        The constructor's; `inspect.Parameter.empty`: there is none.
    """

    name: str
    single: tuple[type, ...]
    many: tuple[type, ...]
    none: bool
    others: bool
    default: Any

    @property
    def is_flag(self) -> bool:
        return self.single == (bool,) and not self.many and not self.none

    def read(self, text: str) -> Any:
        """Return the value that `text` stands for."""
        if self.none and text.lower() in ("none", "null"):
            return None
        if bool in self.single and text.lower() in ("true", "false"):
            return text.lower() == "true"
        found = number_in(text, self.single)
        if found is not None:
            return found
        if self.many and not (str in self.single and "," not in text):
            return [self._element(part.strip()) for part in text.split(",") if part.strip()]
        if str in self.single:
            return text
        raise argparse.ArgumentTypeError(f"must be {self.wanted}, got {text!r}")

    def read_setting(self, given: object) -> Any:
        """Return the value that a text, or a list of texts, of a file of settings stands for."""
        if isinstance(given, str):
            return self.read(given)
        if self.many and isinstance(given, list) and all(isinstance(part, str) for part in given):
            return [self._element(part) for part in given]
        raise argparse.ArgumentTypeError(f"must be {self.wanted}, got {given!r}")

    def _element(self, text: str) -> Any:
        found = number_in(text, self.many)
        if found is None and str not in self.many:
            raise argparse.ArgumentTypeError(f"must be {self.wanted}, got {text!r} in it")
        return text if found is None else found

    @property
    def metavar(self) -> str:
        """What stands for the value in help."""
        return _LISTED if self.many else "|".join(_METAVARS[kind] for kind in self.single)

    @property
    def wanted(self) -> str:
        """What it takes, in words."""
        words = [_NAMES[kind] for kind in self.single]
        if self.many:
            words.append(f"a list such as {'0.1,0.9' if str not in self.many else 'a,b'}")
        if self.none:
            words.append("none")
        return " or ".join(words)


def number_in(text: str, kinds: tuple[type, ...]) -> int | float | None:
    """Return the number that a text is, of the first of int and float in `kinds` that it fits."""
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    return None


def _options(kind: type) -> list[_Option]:
    """Return what the constructor of a class takes, as far as text can express it."""
    found = []
    for name, p in inspect.signature(kind, eval_str=True).parameters.items():
        union = typing.get_origin(p.annotation) in (typing.Union, types.UnionType)
        members = typing.get_args(p.annotation) if union else (p.annotation,)
        many: tuple[Any, ...] = ()
        for member in members:
            if typing.get_origin(member) is collections.abc.Sequence:
                (element,) = typing.get_args(member)
                many = typing.get_args(element) or (element,)
        single = tuple(kind for kind in _KINDS if kind in members)
        many = tuple(kind for kind in _KINDS if kind in many)
        others = not {*members} <= {*_KINDS, type(None)}
        if single or many:
            found.append(_Option(name, single, many, type(None) in members, others, p.default))
    return found


_ABSTRACT = {bool: (bool, np.bool_), int: (numbers.Integral,), float: (numbers.Real,)}
_PYTHON_NAMES = {bool: ("True", "False"), int: ("an integer",), float: ("a number",)}


@functools.cache
def _typed_options(kind: type) -> dict[str, _Option]:
    """Return the arguments that are bools or numbers, and nothing else."""
    try:
        options = _options(kind)
    except NameError:  # the annotations of a user's subclass may name what is not imported
        return {}
    return {each.name: each for each in options if not each.others and str not in each.single}


def check_types(kind: type, given: Mapping[str, object]) -> None:
    """Raise unless arguments of a class that are bools or numbers have their types.

    Any text is true: ``shuffle="no"`` would shuffle.

    Raises
    ------
    TypeError
        The message names the argument.

    Examples
    --------
    >>> from fastseq import Spec
    >>> check_types(Spec, {"shuffle": "no"})
    Traceback (most recent call last):
    TypeError: shuffle must be True or False, got 'no'
    """
    for name, option in _typed_options(kind).items():
        value = given.get(name)
        if name not in given or (value is None and option.none):
            continue
        flag = isinstance(value, _ABSTRACT[bool])
        fits = bool in option.single if flag else any(
            isinstance(value, _ABSTRACT[one]) for one in option.single if one is not bool
        )  # fmt: skip
        if not fits:
            *words, last = [word for one in option.single for word in _PYTHON_NAMES[one]]
            if option.none:
                words, last = [*words, last], "None"
            wanted = f"{', '.join(words)} or {last}" if words else last
            raise TypeError(f"{name} must be {wanted}, got {value!r}")


def check_names(kind: type, names: Iterable[str]) -> None:
    """Raise ValueError unless a class's constructor has arguments of these names.

    Examples
    --------
    >>> from fastseq import Spec
    >>> check_names(Spec, ["epoch"])
    Traceback (most recent call last):
    ValueError: Spec has no option 'epoch': did you mean "epochs"?
    """
    known = list(inspect.signature(kind).parameters)
    for name in names:
        _check_name(kind, name, known)


def _check_name(kind: type, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ValueError(f"{kind.__name__} has no option {name!r}{meant(name, known)}")


def values_of(kind: type, settings: Mapping[str, object]) -> dict[str, Any]:
    """Return the values that the texts of a file of settings stand for, for a class's arguments.

    Raises
    ------
    ValueError
        The class has no such argument, or a text is no value for it.

    Examples
    --------
    >>> from fastseq import Spec
    >>> values_of(Spec, {"epochs": "3", "clip_norm": "none"})
    {'epochs': 3, 'clip_norm': None}
    """
    options = {option.name: option for option in _options(kind)}
    found = {}
    for name, given in settings.items():
        _check_name(kind, name, options)
        try:
            found[name] = options[name].read_setting(given)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name} {error}") from None
    return found


def descriptions(kind: type) -> dict[str, str]:
    """Return the first sentence on each parameter in a class's docstring.

    Examples
    --------
    >>> class Ball:
    ...     '''A ball.
    ...
    ...     Parameters
    ...     ----------
    ...     radius, weight
    ...         In `m` and kg. Not negative.
    ...     '''
    >>> descriptions(Ball)
    {'radius': 'In m and kg.', 'weight': 'In m and kg.'}
    """
    text = inspect.getdoc(kind) or ""
    section = re.search(_SECTION, text, re.DOTALL | re.MULTILINE)
    found = {}
    for names, lines in re.findall(_ENTRY, section[1] if section else "", re.MULTILINE):
        words = " ".join(lines.split()).replace("`", "")
        sentence = re.match(r".*?\.(?= |$)", words)
        for name in names.split(":")[0].split(","):
            found[name.strip()] = sentence[0] if sentence else words
    return found


def check_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """End the script with a message if an option that takes no value has one: ``--shuffle=no``."""
    flags = re.findall(r"(--[\w-]+) \| (--no-[\w-]+)", _usage(parser))
    for word in words:
        name, given, value = word.partition("=")
        for yes, no in flags:
            if given and name in (yes, no):
                parser.error(f"{name} takes no value, got {value!r}: write {yes} or {no}")


def meant_by(parser: argparse.ArgumentParser, words: list[str], unknown: list[str]) -> str:
    """Return advice on words of a command line that no option takes; empty: there is none.

    Examples
    --------
    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--quantiles", metavar=_LISTED)
    >>> words = ["--quantiles", "0.1", "0.9"]
    >>> meant_by(parser, words, parser.parse_known_args(words)[1])
    ': write a list with commas, --quantiles 0.1,0.9'
    >>> meant_by(parser, ["--quantile=0.1"], ["--quantile=0.1"])
    ': did you mean "--quantiles"?'
    """
    usage = _usage(parser)
    lists = re.findall(rf"(--[\w-]+) {re.escape(_LISTED)}", usage)
    options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    values = [word for word in unknown if not word.startswith("--")]
    for place, name in enumerate(words):
        if name in lists:
            first, *rest = [*words[place + 1 :], ""]
            more = itertools.takewhile(
                lambda word: word in values or number_in(word, (float,)) is not None, rest
            )
            together = ",".join([first, *more])
            if together != first:
                return f": write a list with commas, {name} {together}"
    return meant(options[0], re.findall(r"--[\w-]+", usage)) if options else ""


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return all options in a line: argparse does not tell them in another way."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_usage())  # it may be coloured
    return " ".join(plain.split())


class FromArguments:
    """Adds a class's arguments to a script's command line, and makes an object from them.

    Examples
    --------
    >>> from fastseq import Spec
    >>> parser = argparse.ArgumentParser()
    >>> Spec.add_arguments(parser, epochs=20, batchsize=10, seqsize=25)
    >>> Spec.from_args(parser.parse_args(["--epochs", "5"])).epochs
    5
    """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, **defaults: Any) -> None:
        """Add an option for each argument that text can express: ``--clip-norm`` for `clip_norm`.

        Types and help come from the class. Options for lists take ``0.1,0.5,0.9``, those that may
        be None take ``none``. Arguments such as modules and callbacks have no option: pass them to
        `from_args`.

        Parameters
        ----------
        parser
            The script's parser.
        **defaults
            The script's own defaults.

        Raises
        ------
        TypeError
            The class has no such argument, or it has no option.
        argparse.ArgumentError
            The parser has one of the options already.

        Examples
        --------
        >>> import fastseq as fs
        >>> parser = argparse.ArgumentParser()
        >>> fs.Spec.add_arguments(parser, epochs=20, batchsize=10, seqsize=25)
        >>> parser.parse_args(["--clip-norm", "0.5", "--no-shuffle"]).clip_norm
        0.5
        """
        options = {option.name: option for option in _options(cls)}
        for name in defaults:
            if name not in options:
                known = name in inspect.signature(cls).parameters
                why = ": pass it to from_args" if known else meant(name, options)
                raise TypeError(f"{cls.__name__} has no option for {name!r}{why}")
        helps = descriptions(cls)
        group = parser.add_argument_group(cls.__name__)
        for name, option in options.items():
            default = defaults.get(name, option.default)
            required = default is inspect.Parameter.empty
            text = helps.get(name, "").replace("%", "%%")
            more: dict[str, Any] = {"dest": name, "help": text, "required": required}
            if not required:
                more["default"] = default
                more["help"] += " (default: %(default)s)"
            if option.is_flag:
                more["action"] = argparse.BooleanOptionalAction
            else:
                more |= {"type": option.read, "metavar": option.metavar}
            group.add_argument("--" + name.replace("_", "-"), **more)

    @classmethod
    def from_args(cls: type[Own], args: argparse.Namespace, **more: Any) -> Own:
        """Make an object from parsed arguments; the script's own are left out.

        Parameters
        ----------
        args
            What ``parser.parse_args()`` returned, for options of `add_arguments`.
        **more
            Arguments that have no option, such as callbacks, or that the script sets.

        Returns
        -------
        object
            Of the class on which it is called.

        Raises
        ------
        TypeError
            `args` has none of the options, or an argument is unknown.
        ValueError
            A value is not allowed; scikit-learn's estimators say so in `fit`.

        Examples
        --------
        >>> import fastseq as fs
        >>> parser = argparse.ArgumentParser()
        >>> fs.SequenceForecaster.add_arguments(parser, horizon=12)
        >>> args = parser.parse_args(["--quantiles", "0.1,0.5,0.9"])
        >>> fs.SequenceForecaster.from_args(args, verbose=1)
        SequenceForecaster(horizon=12, quantiles=[0.1, 0.5, 0.9], verbose=1)
        """
        names = [option.name for option in _options(cls)]
        found = {name: getattr(args, name) for name in names if hasattr(args, name)}
        if not found:
            raise TypeError(
                f"args have no arguments of {cls.__name__}: call "
                f"{cls.__name__}.add_arguments(parser) before parse_args"
            )
        return cls(**{**found, **more})
