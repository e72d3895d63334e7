"""Nested tuples, lists and dicts of tensors: what models take, return and carry as state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

__all__ = ["Tree", "tree_leaves", "tree_like", "tree_map", "tree_paths"]

Tree: TypeAlias = Any
"""A leaf, or a tuple (named or not), list or dict of trees. None is a tree without leaves."""


def tree_map(fn: Callable[..., Tree], tree: Tree, *others: Tree) -> Tree:
    """Apply `fn` to the leaves of trees of equal structure; return a tree of the results.

    Examples
    --------
    >>> tree_map(lambda a, b: a + b, {"h": (1, 2)}, {"h": (10, 20)})
    {'h': (11, 22)}
    """
    if tree is None:
        return None
    if type(tree) is tuple and not others:  # fast path: most states are tuples
        return tuple([tree_map(fn, part) for part in tree])
    if isinstance(tree, dict):
        return type(tree)((key, tree_map(fn, tree[key], *(o[key] for o in others))) for key in tree)
    if isinstance(tree, (tuple, list)):
        parts = [tree_map(fn, *part) for part in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return fn(tree, *others)


def tree_paths(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for every leaf, in order; the path reads like an index expression.

    Examples
    --------
    >>> list(tree_paths({"h": (1, 2)}, "state"))
    [("state['h'][0]", 1), ("state['h'][1]", 2)]
    """
    if tree is None:
        return
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from tree_paths(part, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, part in enumerate(tree):
            yield from tree_paths(part, f"{path}[{index}]")
    else:
        yield path, tree


def tree_like(tree: Tree, leaves: Iterable[object]) -> Tree:
    """Return a tree of `tree`'s structure with other leaves, in order.

    Examples
    --------
    >>> tree_like({"h": (1, 2)}, ["a", "b"])
    {'h': ('a', 'b')}
    """
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)


def tree_leaves(tree: Tree) -> list[Any]:
    """Return the leaves of `tree`, in order."""
    return [leaf for _, leaf in tree_paths(tree)]
