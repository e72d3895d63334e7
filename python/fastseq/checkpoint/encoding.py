"""Nested states as named tensors, and a text that describes their structure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .format import DTYPES

__all__ = ["decode", "encode"]


def encode(tree: object) -> tuple[dict[str, Tensor], str]:
    """Take the tensors out of a tree.

    Parameters
    ----------
    tree
        Nested dicts, lists and tuples of tensors, arrays, numbers, strings and None.

    Returns
    -------
    dict, str
        The tensors, not copied, by names that show their place; and JSON, from which `decode`
        makes the tree again.

    Raises
    ------
    TypeError
        There is something else in it; the message says where.

    Examples
    --------
    >>> tensors, text = encode({"epochs": 3, "state": {0: (torch.ones(2), 0.5)}})
    >>> list(tensors)
    ['state.0.0']
    >>> decode(text, tensors)
    {'epochs': 3, 'state': {0: (tensor([1., 1.]), 0.5)}}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_encode(tree, "", tensors), allow_nan=False)


def decode(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree given to `encode`, with named tuples as plain ones.

    Raises
    ------
    ValueError
        The text is not from `encode`, or a tensor is missing.
    """
    try:
        return _decode(json.loads(text), tensors)
    except (KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"it was not written by fastseq: {error!r:.300}") from error


def _encode(item: object, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(item, np.generic):
        item = item.item()
    if item is None or isinstance(item, bool | int | str):
        return int(item) if isinstance(item, int) and not isinstance(item, bool) else item
    if isinstance(item, float):
        return float(item) if math.isfinite(item) else {"float": repr(float(item))}
    if isinstance(item, Tensor) and item.is_complex():
        return {"complex": _add(torch.view_as_real(item.detach().resolve_conj()), path, tensors)}
    if isinstance(item, Tensor):
        return {"tensor": _add(item, path, tensors)}
    if isinstance(item, np.ndarray) and item.dtype.kind in "biuf":
        return {"array": _add(torch.from_numpy(np.ascontiguousarray(item)), path, tensors)}
    if isinstance(item, Mapping):
        pairs = [
            [_encode_key(key, path), _encode(part, f"{path}.{key}", tensors)]
            for key, part in item.items()
        ]
        return {"counter" if isinstance(item, Counter) else "dict": pairs}
    if isinstance(item, list | tuple):
        parts = [_encode(part, f"{path}.{i}", tensors) for i, part in enumerate(item)]
        return {"tuple": parts} if isinstance(item, tuple) else parts
    raise TypeError(
        "a file holds numbers, strings, None, tensors, arrays, lists, tuples and dicts, but "
        f"{path.removeprefix('.') or 'it'} is a {type(item).__module__}.{type(item).__qualname__}"
    )


def _encode_key(key: object, path: str) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return _encode(key, path, {})
    if isinstance(key, tuple):
        return {"tuple": [_encode_key(part, path) for part in key]}
    raise TypeError(
        "a file's dicts have numbers, strings and tuples as keys, but "
        f"{path.removeprefix('.') or 'it'} has {key!r}"
    )


def _add(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"a file holds dense tensors, but {path[1:]} is {tensor.layout}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"a file cannot hold tensors of {tensor.dtype}, such as {path[1:]}")
    name = path.removeprefix(".") or "tensor"
    while name in tensors:  # keys with dots in them
        name += "_"
    tensors[name] = tensor.detach()
    return name


def _decode(item: object, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(item, list):
        return [_decode(part, tensors) for part in item]
    if not isinstance(item, dict):
        return item
    ((kind, content),) = item.items()
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "complex":
        return torch.view_as_complex(tensors[content].contiguous())
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(_decode(part, tensors) for part in content)
    if kind not in ("dict", "counter"):
        raise ValueError(f"it was not written by fastseq: {kind!r:.300} is not known")
    pairs = {_decode(key, tensors): _decode(part, tensors) for key, part in content}
    return Counter(pairs) if kind == "counter" else pairs
