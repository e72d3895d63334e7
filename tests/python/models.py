"""Models and hand-written references that several tests use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastseq as fs


def chain(features: int = 3, hidden: int = 4, outputs: int = 1) -> fs.nn.Chain:
    return fs.nn.Chain(nn.LSTM(features, hidden), nn.Linear(hidden, outputs))


class Custom(nn.Module):
    """A cell of its own, with a nested state and a dimension order unlike torch's."""

    def __init__(self, features: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(features + hidden, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None:
            state = {"h": x.new_zeros(x.shape[1], self.inner.out_features), "more": (None,)}
        h = state["h"]
        outputs = []
        for x_t in x:
            h = torch.tanh(self.inner(torch.cat([x_t, h], -1)))
            outputs.append(self.head(h))
        return torch.stack(outputs), {"h": h, "more": (None,)}


class TwoInputs(nn.Module):
    """Takes a tuple, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: tuple[Tensor, Tensor], state: Any = None) -> tuple[dict[str, Tensor], Any]:
        h, state = self.rnn(torch.cat(x, -1), state)
        return {"level": self.head(h), "hidden": h}, state


FUSED_ADAMW = partial(torch.optim.AdamW, fused=True)


def plain_loop(
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    batchsize: int,
    seqsize: int,
    updates: int,
    loss: Callable[[Any, Any], Tensor] = mse_loss,
    carry: bool = True,
    clip_norm: float | None = None,
    lr: float = 1e-2,
    make: Callable[..., torch.optim.Optimizer] = FUSED_ADAMW,
) -> nn.Module:
    """Truncated back-propagation as one writes it by hand; returns a trained copy of `model`."""
    model = copy.deepcopy(model)
    optimizer = make(model.parameters(), lr=lr)
    first = x[0] if isinstance(x, tuple) else x
    steps, count = first.shape[:2]
    done = 0
    while True:
        for n in range(0, count, batchsize):
            state = None
            for t in range(0, steps, seqsize):
                if done == updates:
                    return model
                box = slice(t, t + seqsize), slice(n, n + batchsize)
                xs = tuple(a[box] for a in x) if isinstance(x, tuple) else x[box]
                output, state = model(xs, state if carry else None)
                state = detached(state)
                optimizer.zero_grad()
                loss(output, y[box]).backward()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                done += 1


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {key: detached(part) for key, part in state.items()}
    if isinstance(state, tuple):
        return tuple(detached(part) for part in state)
    return state


def adamw(params: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr=1e-2, fused=True)


def assert_same_parameters(a: nn.Module, b: nn.Module, rtol: float = 1e-6) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        scale = float(q.detach().abs().max())
        worst = float((p - q).detach().abs().max())
        assert worst <= rtol * max(scale, 1e-3), f"{name} differs by {worst:g} of {scale:g}"
