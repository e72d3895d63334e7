"""Networks that look at whole sequences, of different lengths too: padding changes nothing.

All take ``(T, N, F)`` and, if sequences are shorter than T steps, their ``lengths`` ``(N,)``. They
return one output per sequence, ``(N, K)``, or with ``pool=None`` one per step, ``(T, N, K)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._util.spelling import meant
from .padded_layers import PaddedBatchNorm, PaddedConv, masked
from .pooling import Pool, is_within
from .recurrent import GRU, LSTM, RNN
from .recurrent_arguments import checked_lengths

__all__ = ["LSTMFCN", "TCN", "Head", "InceptionTime", "PooledRNN", "Transformer"]


class _ConvBlock(nn.Module):
    """A convolution, normalised, and a ReLU."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = PaddedConv(n_in, n_out, kernel_size, bias=False)
        self.norm = PaddedBatchNorm(n_out)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.relu(self.norm(self.conv(x, mask), mask))


class Head(nn.Module):
    """Dropout and a linear layer on features of each sequence, or of each step."""

    def __init__(self, features: int, n_out: int, pool: str | None, dropout: float) -> None:
        super().__init__()
        self.pool: Pool | None = None if pool is None else Pool(pool)
        parts = 1 if self.pool is None else len(self.pool.parts)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.linear: nn.Linear = nn.Linear(parts * features, n_out)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Return outputs of features ``(T, N, H)``."""
        pooled = x if self.pool is None else self.pool(x, lengths)
        found: Tensor = self.linear(self.dropout(pooled))
        return found


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _mask(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which steps of ``(T, N, F)`` count, ``(N, 1, T)``; None: all do."""
    if lengths is None:
        return None
    return is_within(checked_lengths(lengths, x, may_wait=False), len(x)).T.unsqueeze(1)


def _means(x: Tensor, lengths: Tensor | None, stride: int) -> tuple[Tensor, Tensor | None]:
    """Return the means of each `stride` steps, and how many of them sequences then have."""
    steps = len(x)
    if lengths is not None:
        x = x.masked_fill(~is_within(lengths, steps).unsqueeze(-1), 0)
    blocks = -(-steps // stride)
    x = functional.pad(x, (0, 0, 0, 0, 0, blocks * stride - steps))
    sums = x.reshape(blocks, stride, *x.shape[1:]).sum(1)
    ends = steps if lengths is None else lengths
    begins = torch.arange(blocks, device=x.device).unsqueeze(1) * stride
    counts = (ends - begins).clamp(1, stride).unsqueeze(-1)
    return sums / counts, None if lengths is None else -(-lengths // stride)


class LSTMFCN(nn.Module):
    """Three convolutions beside an LSTM [1]_, narrower than there.

    Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer than T steps, to an
    output of each, ``(N, n_out)``, or with ``pool=None`` of each step, ``(T, N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    width
        Channels of the convolutions; the one in the middle has twice as many.
    kernels
        Steps of their kernels.
    hidden_size
        Units of the LSTM; 0: without one (then it is an FCN [2]_).
    pool
        How the steps are pooled, see `Pool`; None: an output per step.
    dropout
        The fraction of pooled features that training drops.
    stride
        Steps that become one for all but the first convolution, which takes their maximum, and the
        LSTM, which gets their mean: long sequences need less time. 1 with ``pool=None``.

    Raises
    ------
    ValueError
        A size is below 1; `stride` is above 1, though there is an output per step; `pool` is
        unknown; or `dropout` is not from 0 to 1.
        In a call: there is not one length from 0 to T for each sequence.
    RuntimeError
        In a call: x has another number of features than `n_in`.

    References
    ----------
    .. [1] Karim, F. et al., "LSTM fully convolutional networks for time series classification",
       IEEE Access 6 (2018), https://arxiv.org/abs/1709.05206
    .. [2] Wang, Z. et al., "Time series classification from scratch with deep neural networks",
       IJCNN 2017, https://arxiv.org/abs/1611.06455

    Examples
    --------
    >>> LSTMFCN(3, 2)(torch.zeros(50, 8, 3)).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 32,
        kernels: Sequence[int] = (31, 15, 7),
        hidden_size: int = 16,
        pool: str | None = "mean",
        dropout: float = 0.0,
        stride: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(n_in=n_in, n_out=n_out, width=width)
        if stride < 1 or (stride > 1 and pool is None):
            raise ValueError(
                f"stride must be 1 with pool=None, and at least 1, got {stride} with pool={pool!r}"
            )
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.width: int = width
        self.stride: int = stride
        self.kernels: tuple[int, ...] = tuple(kernels)
        self.hidden_size: int = hidden_size
        self.pool: str | None = pool
        self.dropout: float = dropout
        sizes = (n_in, *(width * (1 + i % 2) for i in range(len(kernels))))
        self.blocks: nn.ModuleList = nn.ModuleList(
            _ConvBlock(a, b, k) for a, b, k in zip(sizes, sizes[1:], kernels, strict=False)
        )
        self.lstm: LSTM | None = LSTM(n_in, hidden_size) if hidden_size else None
        self.head: Head = Head(sizes[-1] + hidden_size, n_out, pool, dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        z = self.blocks[0](x.permute(1, 2, 0), _mask(x, lengths))
        if self.stride > 1:
            z = functional.max_pool1d(z, self.stride, ceil_mode=True)
            x, lengths = _means(x, lengths, self.stride)
        mask = _mask(x, lengths)
        for block in self.blocks[1:]:
            z = block(z, mask)
        features = z.permute(2, 0, 1)
        if self.lstm is not None:
            features = torch.cat([features, self.lstm(x, lengths=lengths)[0]], -1)
        found: Tensor = self.head(features, lengths)
        return found


class PooledRNN(nn.Module):
    """Recurrent layers over whole sequences, whose outputs at all steps are pooled.

    Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer than T steps, to an
    output of each, ``(N, n_out)``, or with ``pool=None`` of each step, ``(T, N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    cell
        ``"lstm"``, ``"gru"`` or ``"rnn"``.
    hidden_size, num_layers
        Units of a layer in each direction, and number of layers.
    bidirectional
        Whether there is a second direction, from the ends of the sequences to their starts.
    pool, dropout
        As in `LSTMFCN`; the dropout is also that between the layers.

    Raises
    ------
    ValueError
        `cell` or `pool` is unknown, `hidden_size` or `num_layers` is below 1, or `dropout` is not
        from 0 to 1. In a call: x does not have `n_in` features, or lengths don't fit it.

    Examples
    --------
    >>> PooledRNN(3, 2, "gru", bidirectional=True)(torch.zeros(50, 8, 3)).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        cell: str = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        pool: str | None = "last+mean+max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.cell: str = cell
        self.hidden_size: int = hidden_size
        self.num_layers: int = num_layers
        self.bidirectional: bool = bidirectional
        self.pool: str | None = pool
        self.dropout: float = dropout
        if cell not in _CELLS:
            raise ValueError(
                f"cell must be one of {tuple(_CELLS)}, got {cell!r}{meant(cell, _CELLS)}"
            )
        between = dropout if num_layers > 1 else 0.0
        self.rnn: GRU | LSTM | RNN = _CELLS[cell](
            n_in, hidden_size, num_layers, dropout=between, bidirectional=bidirectional
        )
        self.head: Head = Head(hidden_size * (1 + bidirectional), n_out, pool, dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        found: Tensor = self.head(self.rnn(x, lengths=lengths)[0], lengths)
        return found


_CELLS: dict[str, type[LSTM | GRU | RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class _InceptionBlock(nn.Module):
    """Convolutions of several lengths side by side, and one of the largest values around."""

    def __init__(self, n_in: int, width: int, kernels: Sequence[int]) -> None:
        super().__init__()
        narrow = n_in > 1
        self.bottleneck = PaddedConv(n_in, width, 1, bias=False) if narrow else None
        between = width if narrow else n_in
        self.convs = nn.ModuleList(PaddedConv(between, width, k, bias=False) for k in kernels)
        self.largest = nn.MaxPool1d(3, stride=1, padding=1)
        self.beside = PaddedConv(n_in, width, 1, bias=False)
        self.norm = PaddedBatchNorm(width * (len(kernels) + 1))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        z = x if self.bottleneck is None else self.bottleneck(x, mask)
        lowest = torch.finfo(x.dtype).min
        hidden = x if mask is None else x.masked_fill(~mask, lowest)  # never the largest value
        parts = [conv(z, mask) for conv in self.convs]
        parts.append(self.beside(masked(self.largest(hidden), mask), mask))
        found: Tensor = self.norm(torch.cat(parts, 1), mask)
        return found


class InceptionTime(nn.Module):
    """One network of InceptionTime [1]_, narrower than there: convolutions of several lengths.

    Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer than T steps, to an
    output of each, ``(N, n_out)``, or with ``pool=None`` of each step, ``(T, N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    width
        Channels of each convolution; a block has four times as many.
    kernels
        Steps of the kernels of a block.
    depth
        Number of blocks; every third one adds what entered three blocks before.
    pool, dropout
        As in `LSTMFCN`.

    Raises
    ------
    ValueError
        A size is below 1, `pool` is unknown, or `dropout` is not from 0 to 1.
        In a call: there is not one length from 0 to T for each sequence.
    RuntimeError
        In a call: x has another number of features than `n_in`.

    References
    ----------
    .. [1] Ismail Fawaz, H. et al., "InceptionTime: finding AlexNet for time series classification",
       Data Mining and Knowledge Discovery 34 (2020), https://arxiv.org/abs/1909.04939

    Examples
    --------
    >>> InceptionTime(3, 2)(torch.zeros(50, 8, 3), lengths=torch.full((8,), 40)).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 16,
        kernels: Sequence[int] = (39, 19, 9),
        depth: int = 3,
        pool: str | None = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.width: int = width
        _check_sizes(n_in=n_in, n_out=n_out, width=width, depth=depth)
        self.kernels: tuple[int, ...] = tuple(kernels)
        self.depth: int = depth
        self.pool: str | None = pool
        self.dropout: float = dropout
        channels = width * (len(kernels) + 1)
        self.blocks: nn.ModuleList = nn.ModuleList(
            _InceptionBlock(channels if i else n_in, width, kernels) for i in range(depth)
        )
        self.shortcuts: nn.ModuleList = nn.ModuleList(
            PaddedConv(n_in if i == 2 else channels, channels, 1, bias=False)
            for i in range(2, depth, 3)
        )
        self.norms: nn.ModuleList = nn.ModuleList(PaddedBatchNorm(channels) for _ in self.shortcuts)
        self.head: Head = Head(channels, n_out, pool, dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        mask = _mask(x, lengths)
        z = entered = x.permute(1, 2, 0)
        for i, block in enumerate(self.blocks):
            z = block(z, mask)
            if i % 3 == 2:
                shortcut, norm = self.shortcuts[i // 3], self.norms[i // 3]
                z = entered = torch.relu(z + norm(shortcut(entered, mask), mask))
            else:
                z = torch.relu(z)
        found: Tensor = self.head(z.permute(2, 0, 1), lengths)
        return found


class TCN(nn.Module):
    """Dilated causal convolutions [1]_: an output sees no later step.

    The last block's outputs see ``1 + 2 (kernel_size - 1) (2**depth - 1)`` steps.

    Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer than T steps, to an
    output of each, ``(N, n_out)``, or with ``pool=None`` of each step, ``(T, N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    width
        Channels.
    kernel_size
        Steps of all kernels.
    depth
        Number of residual blocks of two convolutions; each has twice the dilation of the one
        before.
    pool, dropout
        As in `LSTMFCN`; also the fraction of channels that is dropped after each convolution.

    Raises
    ------
    ValueError
        A size is below 1, `pool` is unknown, or `dropout` is not from 0 to 1.
        In a call: there is not one length from 0 to T for each sequence.
    RuntimeError
        In a call: x has another number of features than `n_in`.

    References
    ----------
    .. [1] Bai, S. et al., "An empirical evaluation of generic convolutional and recurrent networks
       for sequence modeling" (2018), https://arxiv.org/abs/1803.01271

    Examples
    --------
    >>> TCN(3, 2, pool=None)(torch.zeros(50, 8, 3)).shape
    torch.Size([50, 8, 2])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 32,
        kernel_size: int = 7,
        depth: int = 4,
        pool: str | None = "last+mean+max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.width: int = width
        _check_sizes(n_in=n_in, n_out=n_out, width=width, kernel_size=kernel_size, depth=depth)
        self.kernel_size: int = kernel_size
        self.depth: int = depth
        self.pool: str | None = pool
        self.dropout: float = dropout
        self.enter: PaddedConv = PaddedConv(n_in, width, 1)
        self.convs: nn.ModuleList = nn.ModuleList(
            PaddedConv(width, width, kernel_size, dilation=2 ** (i // 2), causal=True, bias=False)
            for i in range(2 * depth)
        )
        self.norms: nn.ModuleList = nn.ModuleList(PaddedBatchNorm(width) for _ in self.convs)
        self.drop: nn.Dropout1d = nn.Dropout1d(dropout)
        self.head: Head = Head(width, n_out, pool, dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        mask = _mask(x, lengths)
        z = before = self.enter(x.permute(1, 2, 0), mask)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            z = self.drop(torch.relu(norm(conv(z, mask), mask)))
            if i % 2:
                z = before = z + before
        found: Tensor = self.head(z.permute(2, 0, 1), lengths)
        return found


class Transformer(nn.Module):
    """An encoder of self-attention [1]_, normalised first, with positions as sines and cosines.

    Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer than T steps, to an
    output of each, ``(N, n_out)``, or with ``pool=None`` of each step, ``(T, N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    width
        Features of each step inside; a multiple of twice `heads`.
    heads
        Number of attention heads.
    depth
        Number of layers.
    causal
        Whether a step sees no later one.
    pool, dropout
        As in `LSTMFCN`; the dropout is also that of the layers.

    Raises
    ------
    ValueError
        A size is below 1, `width` is no multiple of twice `heads`, `pool` is unknown, or `dropout`
        is not from 0 to 1.
        In a call: there is not one length from 0 to T for each sequence.
    RuntimeError
        In a call: x has another number of features than `n_in`.

    References
    ----------
    .. [1] Vaswani, A. et al., "Attention is all you need", NeurIPS 2017,
       https://arxiv.org/abs/1706.03762

    Examples
    --------
    >>> Transformer(3, 2)(torch.zeros(50, 8, 3)).shape
    torch.Size([8, 2])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 32,
        heads: int = 4,
        depth: int = 2,
        *,
        causal: bool = False,
        pool: str | None = "last+mean+max",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.width: int = width
        self.heads: int = heads
        self.depth: int = depth
        self.causal: bool = causal
        self.pool: str | None = pool
        self.dropout: float = dropout
        _check_sizes(n_in=n_in, n_out=n_out, width=width, heads=heads, depth=depth)
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 · heads = {2 * heads}, got {width}")
        self.enter: nn.Linear = nn.Linear(n_in, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, norm_first=True)
        self.layers: nn.TransformerEncoder = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head: Head = Head(width, n_out, pool, dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        steps, past = len(x), None
        if lengths is not None:
            lengths = checked_lengths(lengths, x, may_wait=False)
            within = is_within(lengths.clamp(min=1), steps)
            x, past = x.masked_fill(~within.unsqueeze(-1), 0), ~within.T
        z = self.enter(x) + _positions(x, self.enter.out_features).unsqueeze(1)
        later = None
        if self.causal:
            later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        z = self.layers(z, mask=later, src_key_padding_mask=past)
        found: Tensor = self.head(z, lengths)
        return found


def _positions(x: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the steps' numbers, ``(T, width)``; made where `x` is."""
    rates = torch.exp(torch.arange(0, width, 2, device=x.device) * (-math.log(10_000) / width))
    angles = torch.arange(len(x), device=x.device).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1).to(x.dtype)
