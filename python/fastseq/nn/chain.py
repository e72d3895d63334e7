"""`Chain`: layers one after another."""

from __future__ import annotations

from torch import Tensor, nn

from .._util.tree import Tree
from .stateful import takes_lengths, takes_state

__all__ = ["Chain"]


class Chain(nn.Sequential):
    """Layers one after another, with their states threaded through.

    Takes recurrent layers (`torch.nn.LSTM`, `GRU`, `RNN`, or any module with
    ``forward(x, state) -> (y, state)``) and layers without state (``forward(x) -> y``). Maps
    ``(T, N, F)``, or what the first layer takes, to a pair of the last layer's output and the
    state, a tuple with one entry per layer.

    Parameters
    ----------
    *args
        The layers; or one `collections.OrderedDict` of them, by name.

    Raises
    ------
    TypeError
        A layer is no `torch.nn.Module`.
    ValueError
        In a call: there are lengths, and a bidirectional layer that takes none.

    Examples
    --------
    >>> import torch
    >>> model = Chain(nn.LSTM(3, 4), nn.Linear(4, 1))
    >>> y, state = model(torch.zeros(10, 2, 3))
    >>> y.shape, len(state)
    (torch.Size([10, 2, 1]), 2)
    >>> y, state = model(torch.zeros(10, 2, 3), state)  # continues from there
    """

    def forward(
        self, x: Tree, state: tuple[Tree, ...] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tree, Tree]:
        """Run all layers on a chunk.

        Parameters
        ----------
        x
            The chunk, ``(S, B, F)``, or what the first layer takes.
        state
            One entry per layer, as returned; None: a fresh state.
        lengths
            Steps of each sequence, ``(B,)``, for layers that take lengths, such as
            `fastseq.nn.LSTM`; None: all.

        Returns
        -------
        tuple
            The last layer's output, and the state: one entry per layer, None if it has no state.

        Raises
        ------
        ValueError
            There are lengths, and a bidirectional layer that takes none.
        """
        after: list[Tree] = []
        for index, layer in enumerate(self):
            more = {}
            if lengths is not None and takes_lengths(layer):
                more = {"lengths": lengths}
            elif lengths is not None and isinstance(layer, nn.RNNBase) and layer.bidirectional:
                raise ValueError(
                    f"a bidirectional {type(layer).__name__} that takes no lengths would see the "
                    "padding behind the ends of sequences: use fastseq.nn.LSTM, GRU or RNN"
                )
            if takes_state(layer):
                before = None if state is None else state[index]
                x, new = layer(x, before, **more)
                after.append(new)
            else:
                x = layer(x, **more)
                after.append(None)
        return x, tuple(after)
