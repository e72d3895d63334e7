"""Parser of values printed by Julia: literals only, code is never run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

__all__ = ["parse_julia"]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:0x[0-9a-fA-F]+
        | (?:\d[\d_]*\.?\d*|\.\d+)(?:[ef][+-]?\d+)?
        | (?:Inf|NaN)(?:16|32|64)?(?![\w!])))
    | (?P<string>"(?:[^"\\$]|\\.)*")
    | (?P<char>'(?:[^'\\]|\\.[^']*)')
    | (?P<symbol>:[^\W\d][\w!]*)
    | (?P<name>[^\W\d][\w!]*(?:\.[^\W\d][\w!]*)*(?=[({\[])|true\b|false\b|nothing\b|missing\b
        |[^\W\d][\w!]*(?=\s*=[^>=]))
    | (?P<mark>=>|[\[\](){},;=:])
    )""",
    re.VERBOSE,
)
_WORDS = {"true": True, "false": False, "nothing": None, "missing": None}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8}|.)", re.DOTALL)
_ESCAPES = dict(zip("ntrabfv0e", "\n\t\r\a\b\f\v\0\x1b", strict=True))
_MAX_RANGE = 10**7


def parse_julia(text: str) -> Any:
    """Return the value of a Julia literal.

    Parameters
    ----------
    text
        Numbers, ``true``, ``false``, ``nothing``, strings, symbols (which become strings), ranges
        and arrays (which become NumPy arrays if they hold numbers, else lists), tuples, named
        tuples and ``Dict``s (which become dicts), as Julia prints them. A text in quotation marks
        is the string between them, whatever that contains: that is how HDF5Utils.jl writes strings.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> parse_julia('Dict{String, Any}("rate" => 1.0f-3, "sizes" => (10, 20), "loss" => :mse)')
    {'rate': 0.001, 'sizes': (10, 20), 'loss': 'mse'}
    >>> parse_julia("Float32[1.0, 2.5]")
    array([1. , 2.5], dtype=float32)
    """
    stripped = text.strip()
    if len(stripped) >= 2 and stripped[0] == stripped[-1] == '"':
        return stripped[1:-1]
    try:
        parser = _Parser(stripped)
        value = parser.value()
        if parser.kind != "end":
            raise ValueError(f"unexpected {parser.text!r}")
    except (ValueError, OverflowError, RecursionError) as error:
        shown = stripped if len(stripped) <= 80 else stripped[:77] + "..."
        raise ValueError(
            f"{shown!r} is not a Julia literal of numbers, strings, arrays, tuples or Dicts "
            f"({error})"
        ) from error
    return value


class _Parser:
    """Recursive descent over the tokens of a text; `kind` and `text` describe the next one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self.kind = self.text = ""
        self._next()

    def _next(self) -> str:
        """Advance to the next token; return the text of the one before."""
        before = self.text
        match = _TOKEN.match(self._source, self._at)
        if match is None:
            rest = self._source[self._at :].strip()
            if rest:
                raise ValueError(f"unknown {rest.split()[0][:30]!r}")
            self.kind, self.text = "end", ""
        else:
            self.kind, self.text = str(match.lastgroup), match[0].strip()
            self._at = match.end()
        return before

    def _skip(self, mark: str) -> bool:
        if (self.kind, self.text) != ("mark", mark):
            return False
        self._next()
        return True

    def _expect(self, mark: str) -> None:
        if not self._skip(mark):
            raise ValueError(f"{mark!r} is missing" + (f" before {self.text!r}" * bool(self.text)))

    def value(self) -> Any:
        """Read a value, or a range of numbers."""
        first = self._single()
        if not isinstance(first, int | float) or not self._skip(":"):
            return first
        bounds = [first, self._single()]
        if self._skip(":"):
            bounds.append(self._single())
        if not all(type(b) is int for b in bounds):
            raise ValueError("only ranges of integers are read")
        start, step, end = bounds if len(bounds) == 3 else (bounds[0], 1, bounds[1])
        if not step or abs(end - start) > _MAX_RANGE * abs(step):
            raise ValueError("this range is too long or has step 0")
        return np.arange(start, end + (1 if step > 0 else -1), step)

    def _single(self) -> Any:
        if self.kind == "number":
            return _number(self._next())
        if self.kind in ("string", "char"):
            return _unescape(self._next()[1:-1])
        if self.kind == "symbol":
            return self._next()[1:]
        if self.kind == "name" and self.text in _WORDS:
            return _WORDS[self._next()]
        if self.kind == "name":
            return self._named()
        if self._skip("["):
            return self._array(None)
        if self._skip("("):
            return self._tuple()
        raise ValueError(f"unexpected {self.text!r}" if self.text else "the text ends too early")

    def _named(self) -> Any:
        """Read ``Dict(...)``, ``Dict{K, V}(...)``, ``Symbol("...")`` or ``Float32[...]``."""
        name = self._next().rsplit(".", 1)[-1]
        if self.text == "{":
            self._parameters()
        if self._skip("["):
            return self._array(name)
        if self.text != "(" or name not in ("Dict", "Symbol"):
            raise ValueError(f"unknown name {name!r}")
        self._next()
        if name == "Symbol":
            value = self._single()
            self._expect(")")
            if not isinstance(value, str):
                raise ValueError("a Symbol must be made from a string")
            return value
        pairs = {}
        while not self._skip(")"):
            key = self.value()
            self._expect("=>")
            pairs[key if isinstance(key, str) else _key(key)] = self.value()
            if not self._skip(","):
                self._expect(")")
                break
        return pairs

    def _parameters(self) -> None:
        """Skip type parameters: the values say the same."""
        depth, at = 1, self._at  # after the brace
        while depth and at < len(self._source):
            depth += {"{": 1, "}": -1}.get(self._source[at], 0)
            at += 1
        if depth:
            raise ValueError("'}' is missing")
        self._at = at
        self._next()

    def _array(self, name: str | None) -> Any:
        """Read up to the closing bracket: commas make a vector, blanks and semicolons a matrix."""
        rows: list[list[Any]] = [[]]
        vector = False
        while not self._skip("]"):
            if self._skip(";"):
                rows.append([])
            elif self._skip(","):
                vector = True
            else:
                rows[-1].append(self.value())
        matrix = not vector and (len(rows) > 1 or len(rows[0]) > 1)
        found = rows if matrix else rows[0]
        if (vector and len(rows) > 1) or len({len(row) for row in rows}) > 1:
            raise ValueError("the rows of an array differ in length")
        dtype = _dtype(name)
        plain = [v for row in rows for v in row]
        numbers = all(isinstance(v, bool | int | float) for v in plain)
        if dtype is not None or (plain and numbers):
            return np.array(found, dtype)
        return found

    def _tuple(self) -> Any:
        """Read up to the closing parenthesis: a tuple, or a named tuple, which becomes a dict."""
        names: list[str] = []
        values: list[Any] = []
        while not self._skip(")"):
            if self.kind == "name" and self.text not in _WORDS:
                names.append(self._next())
                self._expect("=")
            values.append(self.value())
            if not self._skip(","):
                self._expect(")")
                break
        if not names:
            return tuple(values)
        return dict(zip(names, values, strict=True))


def _dtype(name: str | None) -> np.dtype | None:
    if name is None or name in ("Any", "String", "Symbol", "Real", "Number"):
        return None
    if not re.fullmatch(r"Bool|U?Int(8|16|32|64)?|Float(16|32|64)", name):
        raise ValueError(f"arrays of {name} are not read")
    return np.dtype(name.lower())


def _number(text: str) -> int | float:
    if "0x" in text:
        return int(text, 16)
    if text.lstrip("+-")[:3] in ("Inf", "NaN"):
        return float(re.sub(r"(16|32|64)$", "", text))
    text = text.replace("_", "")
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text.replace("f", "e"))


def _key(key: object) -> Any:
    if isinstance(key, np.ndarray | list | dict):
        raise ValueError("keys must be strings, symbols or numbers")
    return key


def _unescape(text: str) -> str:
    def plain(escape: re.Match[str]) -> str:
        code = escape[1]
        return chr(int(code[1:], 16)) if code[0] in "xuU" and code[1:] else _ESCAPES.get(code, code)

    return _ESCAPE.sub(plain, text)
