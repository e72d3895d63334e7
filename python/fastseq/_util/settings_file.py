"""Files of settings in YAML, as text: what reads them gives the texts their types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .optional_imports import need

__all__ = ["Quoted", "read_settings"]

_MOST = 100_000  # values: by aliases of aliases, a few lines can stand for billions
_LONGEST = 500


class Quoted(str):
    """A text that stands in quotes, or in a block, in the file: no number or word such as none."""

    __slots__ = ()


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    r"""Return the names and values of a YAML file: texts, and lists and dictionaries of texts.

    Values are not guessed from how they look: YAML's own rules make False of ``NO`` (Norway) and a
    text of ``1e-3``. Empty values and ``~`` are the text "none"; those in quotes are `Quoted`.

    Raises
    ------
    ValueError
        The file is not YAML in UTF-8, is not a mapping, has no entries, or has a name twice.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "settings.yaml")
    >>> _ = path.write_text("horizon: 12\nlr: 1e-3\nholidays: NO\nquantiles: [0.1, 0.9]")
    >>> read_settings(path)
    {'horizon': '12', 'lr': '1e-3', 'holidays': 'NO', 'quantiles': ['0.1', '0.9']}
    """
    yaml = need("yaml", "a file of settings")
    content = Path(path).read_bytes()
    try:
        root = yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            raise ValueError("it must have lines such as 'epochs: 20'")
        return dict(_value(yaml, root, [_MOST]))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8, see line {line}: save it in UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split()):.300}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: its values are nested too deeply") from None


def _value(yaml: Any, node: Any, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {_MOST} values: write less, without aliases (*name)")
    if isinstance(node, yaml.SequenceNode):
        return [_value(yaml, part, left) for part in node.value]
    if isinstance(node, yaml.ScalarNode):
        _check_length(node)
        if node.style is not None:
            return Quoted(node.value)
        return "none" if node.value.lower() in ("", "~", "null") else node.value
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value
        if isinstance(name, str):
            _check_length(key)
        where = f"in line {key.start_mark.line + 1}"
        if not isinstance(name, str) or name == "<<":
            raise ValueError(f"a name must be text, {where}")
        if name in found:
            raise ValueError(f"{name!r} is given twice, again {where}")
        found[name] = _value(yaml, value, left)
    return found


def _check_length(node: Any) -> None:
    """Raise if a text is longer than any setting: messages quote it."""
    if len(node.value) > _LONGEST:
        raise ValueError(
            f"the text in line {node.start_mark.line + 1} has {len(node.value)} characters: write "
            f"at most {_LONGEST}"
        )
