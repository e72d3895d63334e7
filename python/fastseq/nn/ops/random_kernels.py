"""Features of sequences by random kernels: MiniRocket's [1]_.

Convolutions are of 9 taps, a given number of steps apart: 3 of them have the weight 2/3, the other
6 the weight -1/3, in all 84 ways. All operations have one order, in C++ as here, so that results
are the same bits.

.. [1] Dempster, A., Schmidt, D. F., Webb, G. I., "MiniRocket: a very fast (almost) deterministic
   transform for time series classification", KDD 2021, https://arxiv.org/abs/2012.08791
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .library import native

__all__ = ["KERNELS", "measure_thresholds_", "random_kernels"]

_TAPS = 9
_CHOSEN = tuple(zip(*itertools.combinations(range(_TAPS), 3), strict=True))
KERNELS = len(_CHOSEN[0])
"""The number of kernels."""
# Of two sizes; of open ones in exported programs it makes no choice.
_larger: Callable[[int, int], int] = torch.sym_max
_SAMPLE = 1024  # steps that quantiles are taken of
# What thresholds are above quantiles, in mean sizes of values: more than rounding, which must not
# decide where values repeat, as in flat parts of a series.
_APART = 1e-5


def random_kernels(
    x: Tensor,
    lengths: Tensor | None,
    members: Tensor,
    dilations: Sequence[int],
    thresholds: Tensor,
    least_steps: int,
) -> Tensor:
    """Return how often convolutions exceed thresholds. Not differentiable.

    Parameters
    ----------
    x
        Sequences ``(T, N, F)``, float32 or float64.
    lengths
        Steps of each sequence, ``(N,)``, int64, beyond which x is not read; None: all T.
    members
        Features of each group, which are summed, ``(G, M)``, int64; F stands for none.
    dilations
        Steps between the taps of each group's kernels.
    thresholds
        Of each group's kernels, ``(G, 84)``.
    least_steps
        Shorter sequences are followed by zeros up to so many steps.

    Returns
    -------
    Tensor
        ``(N, 84 · G)``: the fraction of steps at which the convolution, centred and with zeros
        around the sequence, is above the threshold. NaN if the group's sum is not finite at some
        step.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or devices don't fit together.

    Examples
    --------
    >>> x, none = torch.zeros(20, 3, 2), torch.zeros(1, 84)
    >>> random_kernels(x, None, torch.tensor([[0, 1]]), [2], none, 20).shape
    torch.Size([3, 84])
    """
    x = x.detach()
    if x.is_cpu and not torch.compiler.is_exporting():
        found: Tensor = native.random_kernels(
            x, lengths, members, dilations, thresholds, least_steps
        )
        return found
    return plain_random_kernels(x, lengths, members, dilations, thresholds, least_steps)


def plain_random_kernels(
    x: Tensor,
    lengths: Tensor | None,
    members: Tensor,
    dilations: Sequence[int],
    thresholds: Tensor,
    least_steps: int,
) -> Tensor:
    """Do the same with PyTorch's operations, on any device, in programs that are exported, too."""
    steps = x.shape[0]  # `len` would fix it in exported programs
    counted = _larger(steps, least_steps)
    number = torch.arange(counted, device=x.device)
    total = torch.full((x.shape[1],), counted, device=x.device)
    if lengths is not None:
        past = torch.arange(steps, device=x.device).unsqueeze(1) >= lengths
        x, total = x.masked_fill(past.unsqueeze(-1), 0), lengths.clamp(min=least_steps)
    within = number.unsqueeze(1) < total
    offsets = torch.arange(_TAPS, device=x.device).unsqueeze(1) - _TAPS // 2
    found = []
    for sums, dilation, least in zip(_sums(x, members), dilations, thresholds, strict=True):
        at = number + offsets * dilation  # not slices: exported programs leave sizes open
        at = at.masked_fill((at < 0) | (at >= steps), steps)
        taps = functional.pad(sums, (0, 0, 0, 1))[at]
        above = (_convolved(taps) > least.view(-1, 1, 1)) & within
        parts = above.sum(1).T.to(x.dtype) / total.to(x.dtype).unsqueeze(1)
        finite = (sums - sums == 0).all(0).unsqueeze(1)
        found.append(torch.where(finite, parts, torch.nan))
    return torch.cat(found, 1)


def _sums(x: Tensor, members: Tensor) -> Tensor:
    """Return the sums of each group's features, ``(G, T, N)``."""
    each = functional.pad(x, (0, 1)).permute(2, 0, 1)[members.T]  # (M, G, T, N)
    sums = each[0]
    for more in each[1:]:
        sums = sums + more
    return sums


def _convolved(taps: Tensor) -> Tensor:
    """Return all kernels' convolutions, given values at their taps: ``(9, …)`` to ``(84, …)``."""
    base = taps[0]
    for tap in taps[1:]:
        base = base + tap
    found = base * (-1 / 3)
    for chosen in _CHOSEN:
        found = found + taps[list(chosen)]
    return found


def measure_thresholds_(
    thresholds: Tensor,
    ready: Tensor,
    x: Tensor,
    lengths: Tensor | None,
    members: Tensor,
    dilations: Sequence[int],
    seed: int,
) -> None:
    """Set thresholds to quantiles of the convolutions, unless it has been done.

    The levels of the quantiles are spread evenly; they are taken of at most 1024 steps of the
    sequences, drawn at random. Thresholds are slightly above, so that rounding does not decide
    where values repeat. Nothing is done if there is no step, if not all are finite, or if no
    convolution differs from step to step.

    Parameters
    ----------
    thresholds
        ``(G, 84)``; changed.
    ready
        Whether it has been done, a bool; changed.
    x, lengths, members, dilations
        As in `random_kernels`.
    seed
        Seed of the steps.
    """
    if torch.compiler.is_compiling():
        torch.ops.fastseq.measure_thresholds_(
            thresholds, ready, x, lengths, members, dilations, seed
        )
    else:
        _measure(thresholds, ready, x, lengths, members, dilations, seed)


def _measure(
    thresholds: Tensor, ready: Tensor, x: Tensor, lengths: Tensor | None, members: Tensor,
    dilations: Sequence[int], seed: int,
) -> None:  # fmt: skip
    if (x.is_cuda and torch.cuda.is_current_stream_capturing()) or bool(ready):
        return
    with torch.no_grad():
        steps, count = x.shape[:2]
        number = torch.arange(steps, device=x.device).unsqueeze(1)
        within = (number < (steps if lengths is None else lengths)).expand(steps, count)
        t, n = within.nonzero(as_tuple=True)
        if len(t) > _SAMPLE:
            drawn = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))
            drawn = drawn[:_SAMPLE].to(x.device)
            t, n = t[drawn], n[drawn]
        if not len(t):
            return
        levels = _levels(len(dilations)).to(x)
        found, ends, varies = [], within.sum(0)[n], torch.zeros((), dtype=torch.bool).to(x.device)
        offsets = torch.arange(_TAPS, device=x.device).unsqueeze(1) - _TAPS // 2
        for own, dilation, level in zip(members, dilations, levels, strict=True):
            at = t + offsets * dilation
            chosen = own[own < x.shape[2]]
            each = x[at.clamp(0, steps - 1).unsqueeze(-1), n.unsqueeze(-1), chosen]  # (9, S, M)
            past = (at < 0) | (at >= ends)
            taps = each.masked_fill(past.unsqueeze(-1), 0).sum(-1)
            values = _convolved(taps)
            varies |= (values != values[:, :1]).any()
            quantiles = torch.quantile(values, level, dim=1).diagonal()
            found.append(quantiles + _APART * taps.abs().mean())
        measured = torch.stack(found)
        if bool(measured.isfinite().all() & varies):
            thresholds.copy_(measured)
            ready.fill_(True)


def _levels(groups: int) -> Tensor:
    """Return levels of quantiles, ``(G, 84)``: multiples of the golden ratio, modulo 1."""
    golden = (math.sqrt(5) + 1) / 2
    number = torch.arange(1, groups * KERNELS + 1, dtype=torch.float64)
    return (number * golden % 1).view(groups, KERNELS)


def _fake(
    x: Tensor, lengths: object, members: object, dilations: Sequence[int], *_: object
) -> Tensor:
    del lengths, members
    return x.new_empty(x.shape[1], KERNELS * len(dilations))


torch.library.register_fake("fastseq::random_kernels", _fake)
torch.library.define(
    "fastseq::measure_thresholds_",
    "(Tensor(a!) thresholds, Tensor(b!) ready, Tensor x, Tensor? lengths, Tensor members, "
    "int[] dilations, int seed) -> ()",
)
torch.library.impl("fastseq::measure_thresholds_", "CompositeExplicitAutograd", _measure)
torch.library.register_fake("fastseq::measure_thresholds_", lambda *_: None)
