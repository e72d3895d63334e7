"""Swap torch's recurrent layers for fastseq's while compiling.

PyTorch's compilers unroll its recurrent layers over time, or refuse them. fastseq's layers are one
operator each, with the same parameters and results.
"""

from __future__ import annotations

from types import TracebackType

from torch import nn as torch_nn

from .. import nn

__all__ = ["SUBSTITUTES", "Substitutes"]


class _LSTM(nn.LSTM):
    trainable_state = False


class _GRU(nn.GRU):
    trainable_state = False


class _RNN(nn.RNN):
    trainable_state = False


SUBSTITUTES: dict[type[torch_nn.Module], type[torch_nn.Module]] = {
    torch_nn.LSTM: _LSTM,
    torch_nn.GRU: _GRU,
    torch_nn.RNN: _RNN,
}


class Substitutes:
    """A context manager that turns torch's recurrent layers in a model into fastseq's.

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.nn.Chain(torch_nn.LSTM(3, 4), torch_nn.Linear(4, 1))
    >>> with Substitutes(model):
    ...     isinstance(model[0], fs.nn.LSTM)
    True
    >>> isinstance(model[0], fs.nn.LSTM)
    False
    """

    def __init__(self, model: torch_nn.Module) -> None:
        self._layers = [
            (m, type(m), SUBSTITUTES[type(m)]) for m in model.modules() if type(m) in SUBSTITUTES
        ]

    def __enter__(self) -> None:
        for layer, _, ours in self._layers:
            object.__setattr__(layer, "__class__", ours)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for layer, own, _ in self._layers:
            object.__setattr__(layer, "__class__", own)
