"""Models that are trained side by side."""

from __future__ import annotations

from torch import nn

__all__ = ["Members", "trained_apart"]


class Members(nn.ModuleList):
    """Models of one ensemble: each one's gradients are clipped by their own norm.

    Examples
    --------
    >>> len(Members([nn.Linear(1, 1), nn.Linear(1, 1)]))
    2
    """


def trained_apart(module: nn.Module, params: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divide parameters into those of each member of an ensemble, and all others.

    Examples
    --------
    >>> both = Members([nn.Linear(1, 1), nn.Linear(1, 1, bias=False)])
    >>> [len(part) for part in trained_apart(both, list(both.parameters()))]
    [2, 1]
    """
    place: dict[nn.Parameter, int] = {}
    count = 0
    for part in module.modules():
        for member in part if isinstance(part, Members) else ():
            count += 1
            for p in member.parameters():
                place.setdefault(p, count)
    groups: list[list[nn.Parameter]] = [[] for _ in range(count + 1)]
    for p in params:
        groups[place.get(p, 0)].append(p)
    return [group for group in groups if group]
