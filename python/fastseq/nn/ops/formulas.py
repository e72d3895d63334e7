"""Recurrent layers step by step, in differentiable operators.

For second derivatives and transforms of torch.func, which the fused operators do not support.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["GRU", "LSTM", "RELU", "TANH", "Layer", "differentiable_gradients", "run_steps"]

LSTM, GRU, TANH, RELU = range(4)  # as in csrc/core/recurrence/recurrence.h


class Layer(NamedTuple):
    """A layer's kind, inputs and options, from which to compute gradients."""

    cell: int
    x: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    h0: Tensor
    c0: Tensor | None
    lengths: Tensor | None
    reverse: bool


def differentiable_gradients(
    layer: Layer, grads: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return differentiable gradients, through formulas in torch's operators."""
    inputs = layer[1:8]
    with torch.enable_grad():
        # Views, as an input may depend on another one: such paths are not this layer's.
        own = [
            a.view_as(a) if need and a is not None else a
            for a, need in zip(inputs, needs, strict=True)
        ]
        wanted = [a for a, need in zip(own, needs, strict=True) if need and a is not None]
        outputs = run_steps(Layer._make((layer.cell, *own, layer.lengths, layer.reverse)))
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None]
        pairs = [(o, g) for o, g in pairs if o.requires_grad]  # no steps: nothing depends on x
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
    rest = iter(found)
    return tuple(
        next(rest) if need and a is not None else None
        for a, need in zip(inputs, needs, strict=True)
    )


def run_steps(layer: Layer) -> list[Tensor]:
    """Run a layer step by step; return the same as the operator."""
    h, c = layer.h0[0], None if layer.c0 is None else layer.c0[0]
    step = _CELLS[layer.cell]
    count = layer.x.shape[0]
    outputs = []
    for t in reversed(range(count)) if layer.reverse else range(count):
        x = layer.x[t]
        if layer.lengths is None:
            h, c = step(layer, x, h, c)
            y = h
        else:
            active = (t < layer.lengths).unsqueeze(1)
            new_h, new_c = step(layer, torch.where(active, x, 0), h, c)  # x may be NaN elsewhere
            y = torch.where(active, new_h, 0)
            h = torch.where(active, new_h, h)
            c = None if c is None else torch.where(active, new_c, c)
        outputs.append(y)
    if layer.reverse:
        outputs.reverse()
    whole = torch.stack(outputs) if outputs else layer.x.new_zeros(0, *h.shape)
    return [whole, h.unsqueeze(0), *([] if c is None else [c.unsqueeze(0)])]


def _products(layer: Layer, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    linear = torch.nn.functional.linear
    return linear(x, layer.w_ih, layer.b_ih), linear(h, layer.w_hh, layer.b_hh)


def _lstm_step(layer: Layer, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    ours, carried = _products(layer, x, h)
    i, f, g, o = (ours + carried).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(layer: Layer, x: Tensor, h: Tensor, c: None) -> tuple[Tensor, None]:
    (r, z, n), (hr, hz, hn) = (p.chunk(3, 1) for p in _products(layer, x, h))
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return n + (z + hz).sigmoid() * (h - n), c


def _rnn_step(layer: Layer, x: Tensor, h: Tensor, c: None) -> tuple[Tensor, None]:
    ours, carried = _products(layer, x, h)
    total = ours + carried
    return total.relu() if layer.cell == RELU else total.tanh(), c


_CELLS: tuple[Callable[..., tuple[Tensor, Any]], ...] = (
    _lstm_step, _gru_step, _rnn_step, _rnn_step,
)  # fmt: skip
