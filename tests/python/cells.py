"""The operators lstm, gru and rnn, and the same from torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastseq.nn import ops

LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
NAMES = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0")


def operands(cell, steps=5, count=3, features=2, hidden=3, dtype=torch.float64, bias=True):
    """Return x, weights, biases and state of a layer, by name; all of them require gradients."""
    layer = LAYERS[cell](features, hidden, bias=bias, dtype=dtype)
    state = [torch.randn(1, count, hidden, dtype=dtype) for _ in ("hc" if cell == "lstm" else "h")]
    x = torch.randn(steps, count, features, dtype=dtype)
    biases = [] if bias else [None, None]
    found = dict(zip(NAMES, [x, *layer.parameters(), *biases, *state], strict=False))
    return {name: a if a is None else a.detach().requires_grad_() for name, a in found.items()}


def run(cell: str, inputs: list[Any], lengths: Tensor | None = None, reverse: bool = False):
    if cell in ("lstm", "gru"):
        return getattr(ops, cell)(*inputs, lengths, reverse)
    return ops.rnn(*inputs, lengths, reverse, cell == "relu")


def by_torch(cell: str, inputs: list[Any], lengths: Tensor | None = None, reverse: bool = False):
    """Return what torch's layer makes of each sequence alone, cut to its length."""
    x, *weights, h0 = inputs[:6]
    state = [h0, *inputs[6:]]
    weights = [w for w in weights if w is not None]
    function = {
        "lstm": torch.lstm,
        "gru": torch.gru,
        "tanh": torch.rnn_tanh,
        "relu": torch.rnn_relu,
    }
    ys, ends = [], []
    steps, count = x.shape[:2]
    lengths = torch.full((count,), steps) if lengths is None else lengths
    for n, length in enumerate(lengths.tolist()):
        begin = [s[:, n : n + 1] for s in state]
        part = x[:length, n : n + 1]
        y, last = part.new_zeros(0, 1, h0.shape[2]), begin
        if length > 0:
            hx = begin if cell == "lstm" else begin[0]
            part = part.flip(0) if reverse else part
            y, *last = function[cell](part, hx, weights, len(weights) == 4, 1, 0.0, False, False, False)  # fmt: skip
            y = y.flip(0) if reverse else y
        ys.append(torch.cat([y, y.new_zeros(steps - length, 1, h0.shape[2])]))
        ends.append(last)
    if not ys:
        return [x.new_zeros(steps, 0, h0.shape[2]), *state]
    return [torch.cat(ys, 1), *(torch.cat(parts, 1) for parts in zip(*ends, strict=True))]


def gradients(outputs, inputs, cotangents):
    """Return the gradients of the inputs that require one, zeros where there is none."""
    wanted = [a for a in inputs if a is not None and a.requires_grad]
    pairs = [(o, g) for o, g in zip(outputs, cotangents, strict=True) if g is not None]
    pairs = [(o, g) for o, g in pairs if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(a) for a in wanted]
    outs, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outs, wanted, grads, allow_unused=True, materialize_grads=True)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the same values in memory of another kind."""
    steps, count, features = x.shape
    if layout == "unaligned":
        return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
    if layout == "sequences first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "features first":
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    if layout == "strided":
        wide = x.new_full((2 * steps, 3 * count, 2 * features), torch.nan)
        wide[::2, ::3, ::2] = x
        return wide[::2, ::3, ::2]
    if layout == "expanded":
        return x[:1].contiguous().expand(x.shape)
    return x.contiguous()
