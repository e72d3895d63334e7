"""What a checkpoint must hold, whoever wrote it: all ranks look at all of it before they use it."""

from __future__ import annotations

from typing import Any

import torch

from .._util.random_state import random_state, set_random_state

__all__ = ["check_random", "check_run"]

_LIMIT = 2**53
_NUMBER = float | int


def check_run(tree: dict[str, Any]) -> None:
    """Raise unless a checkpoint's position is one that `fit` may have, on each of its ranks.

    What is compared with the model, the optimizer or a callback is left to these.

    Raises
    ------
    ValueError
        It is not.
    KeyError
        A part is missing.
    """
    history = tree["history"]
    _check("history", history, list)
    for row in history:
        _check("history", row, dict)
        _check("history", row["updates"], int)
    done = len(history)
    for name, least, most in (
        ("first", 0, done), ("epochs", done, _LIMIT), ("updates", 0, _LIMIT), ("chunk", 0, _LIMIT),
    ):  # fmt: skip
        count = tree[name]
        if type(count) is not int or not least <= count <= most:
            raise ValueError(f"it has {name}={count!r:.100}, after {done} epochs")
    for name, kind in (
        ("seed", int | None), ("inside", bool), ("stopped", str | None),
        ("seconds", _NUMBER), ("epoch_seconds", _NUMBER),
    ):  # fmt: skip
        _check(name, tree[name], kind)
    sums = tree["sums"]
    if tree["inside"] is not (sums is not None) or not all(
        isinstance(number, _NUMBER) for number in sums or ()
    ):
        raise ValueError(f"it has inside={tree['inside']!r}, sums={sums!r:.100}")
    _check("ranks", tree["ranks"], list)
    for own in tree["ranks"]:
        _check_rank(own, inside=tree["inside"])


def _check_rank(own: Any, *, inside: bool) -> None:
    """Raise unless this is what a rank has of its own."""
    _check("ranks", own, dict)
    kinds: dict[str, Any] = {
        "random": dict, "buffers": dict | None, "since_common": _NUMBER | None
    }  # fmt: skip
    if inside:
        kinds |= {"outside": dict, "stop_request": str | None, "plain": bool, "ends": dict | None}
    for name, kind in kinds.items():
        _check(name, own[name], kind)


def _check(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"it has {name}={value!r:.100}")


def check_random(own: dict[str, Any], device: torch.device) -> None:
    """Raise if states of random generators, which are set in the middle of training, are none."""
    now = random_state(device)
    try:
        for name in ("random", "outside"):
            if own.get(name) is not None:
                set_random_state(own[name], device)
    finally:
        set_random_state(now, device)
