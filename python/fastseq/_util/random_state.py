"""State of the global random number generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "set_random_state"]


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of PyTorch's generators (CPU and `device`), Python's and NumPy's.

    Examples
    --------
    >>> state = random_state(torch.device("cpu"))
    >>> first = torch.rand(1), np.random.rand()
    >>> set_random_state(state, torch.device("cpu"))
    >>> first == (torch.rand(1), np.random.rand())
    True
    """
    numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002 (it is what others draw from)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": _python_state(),
        "numpy": (numpy[0], numpy[1].astype(np.int64), *numpy[2:]),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the generators to what `random_state` returned."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _python_state() -> tuple[int, torch.Tensor, float | None]:
    version, words, gauss = random.getstate()
    return version, torch.tensor(words), gauss
