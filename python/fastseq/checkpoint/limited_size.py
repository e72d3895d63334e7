"""Models made from files: no larger than the weights that the files hold."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules import module as registering

from ..errors import CheckpointError

__all__ = ["no_larger_than"]

# What is made on the way may be somewhat larger: this is little memory, whatever a file says.
_ROOM = 1 << 20
_TIMES = 4


@contextlib.contextmanager
def no_larger_than(weights: Mapping[str, object], path: object) -> Iterator[None]:
    """Refuse to make a model in this thread that is far larger than its weights.

    A few bytes of a file can describe a model that fills the memory, or takes hours to make.

    Parameters
    ----------
    weights
        The file's parameters and buffers.
    path
        The file, in the message.

    Raises
    ------
    CheckpointError
        A layer has registered a larger parameter or buffer than any of the file, or there are too
        many.

    Examples
    --------
    >>> with no_larger_than({"weight": Tensor(2, 3)}, "file"):
    ...     nn.Linear(3000, 3000)
    Traceback (most recent call last):
    fastseq.errors.CheckpointError: load: file describes a larger model than it holds: weight has \
9000000 numbers
    """
    sizes = [a.numel() for a in weights.values() if isinstance(a, Tensor)]
    largest = _TIMES * max(sizes, default=0) + _ROOM
    left = _TIMES * len(sizes) + 100
    thread = threading.get_ident()  # hooks are called in all threads

    def check(_: nn.Module, name: str, a: Tensor | None) -> None:
        nonlocal left
        if a is None or threading.get_ident() != thread:
            return
        left -= 1
        if left < 0 or a.numel() > largest:
            raise CheckpointError(
                f"load: {path} describes a larger model than it holds: {name} "
                f"{'is one too many' if left < 0 else f'has {a.numel()} numbers'}"
            )

    hooks = (
        registering.register_module_parameter_registration_hook(check),
        registering.register_module_buffer_registration_hook(check),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
