"""Random convolutions of whole sequences, and a linear model on their features: MiniRocket."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .ops import KERNELS, measure_thresholds_, random_kernels

__all__ = ["RandomKernels", "Rocket"]

_MOST = 9  # features that are summed
_LEAST = 1e-5  # is added to variances
_DEVIATION = 1000**0.5  # of all scaled features together


class RandomKernels(nn.Module):
    """Features of whole sequences by many convolutions that are not trained: MiniRocket's [1]_.

    ``(T, N, n_in)``, with `lengths` ``(N,)`` if some sequences have fewer than T steps, to
    ``(N, 84 · groups)``. A group sums up some of the features at each step, drawn
    at random from one of the `parts`, and convolves the sums with 84 kernels of 9 taps with one
    dilation: the taps' weights are -1/3, and 2/3 at three of them. A feature is the fraction of
    steps at which such a convolution is above a threshold.

    Thresholds are quantiles of the convolutions over the first batch in training mode, at levels
    that are spread evenly; `Estimator.fit` takes their mean over all ranks. They are 0 before. A
    batch whose convolutions are all alike, such as zeros, does not count as one.

    Sequences shorter than `steps` are followed by zeros, which are counted, too, so that features
    tell how long a sequence is: scale inputs to mean 0. Steps past `lengths` are not read. Features
    of sequences with values that are not finite are NaN.

    Weights sum up to 0, so levels do not count, nor do inputs that are constant over time, except
    near the ends. No gradient reaches the inputs: features are piecewise constant.

    Parameters
    ----------
    n_in
        Number of features of a step.
    steps
        Time steps of the longest sequence of the training data. Dilations are spread up to
        ``(steps - 1) / 8``, at which a kernel spans a whole sequence.
    groups
        Number of dilations, each with 84 kernels; with several parts of each.
    seed
        Seed of what is drawn at random.
    parts
        How many features belong together, `n_in` in all: those of different parts are not summed
        up. None: all do.

    Attributes
    ----------
    dilations
        Steps between the taps, of each group.
    members
        The features of each group, ``(groups, M)``; `n_in` stands for none.
    thresholds
        ``(groups, 84)``.
    ready
        Whether thresholds have been measured.

    Raises
    ------
    ValueError
        A size is below 1, or the parts' are not `n_in` in all. In a call: x is not
        ``(T, N, n_in)``.
    RuntimeError
        In a call: `lengths` are not one for each sequence, or not from 0 to T.

    References
    ----------
    .. [1] Dempster, A., Schmidt, D. F., Webb, G. I., "MiniRocket: a very fast (almost)
       deterministic transform for time series classification", KDD 2021,
       https://arxiv.org/abs/2012.08791

    Examples
    --------
    >>> RandomKernels(3, steps=50)(torch.randn(50, 8, 3)).shape
    torch.Size([8, 2016])
    """

    members: Tensor
    thresholds: Tensor
    ready: Tensor

    def __init__(
        self,
        n_in: int,
        steps: int,
        groups: int = 24,
        seed: int = 0,
        parts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if min(n_in, steps, groups) < 1:
            raise ValueError(
                f"n_in, steps and groups must be at least 1, got {n_in}, {steps} and {groups}"
            )
        sizes = parts or (n_in,)
        if sum(sizes) != n_in or min(sizes) < 1:
            raise ValueError(f"parts must be at least 1 and {n_in} in all, got {parts}")
        self.n_in: int = n_in
        self.steps: int = steps
        self.groups: int = groups
        self.seed: int = seed
        self.parts: tuple[int, ...] | None = parts
        # the first, for what makes models of files: it refuses those that are too large
        self.register_buffer("thresholds", torch.zeros(groups * len(sizes), KERNELS))
        largest = math.log2(max(1.0, (steps - 1) / 8))
        exponents = [largest * group / max(1, groups - 1) for group in range(groups)]
        self.dilations: list[int] = [int(2**exponent + 1e-9) for exponent in exponents] * len(sizes)
        self.register_buffer("members", torch.tensor(self._drawn(sizes)))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def _drawn(self, sizes: tuple[int, ...]) -> list[list[int]]:
        """Draw each group's features; the logarithm of their number is uniform."""
        rng = torch.Generator("cpu").manual_seed(self.seed)
        room, members = min(max(sizes), _MOST), []
        for part, size in enumerate(sizes):
            first, most = sum(sizes[:part]), min(size, _MOST)
            for _ in range(self.groups):
                share = torch.rand((), generator=rng, device="cpu").item()
                count = min(most, int(2 ** (share * math.log2(most + 1))))
                own = first + torch.randperm(size, generator=rng, device="cpu")[:count]
                members.append(own.tolist() + [self.n_in] * (room - count))
        return members

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        if x.dim() != 3 or x.shape[2] != self.n_in:
            raise ValueError(f"x must be (T, N, {self.n_in}), got {tuple(x.shape)}")
        exact = x.is_floating_point() and x.dtype.itemsize >= 4
        wide = x.detach() if exact else x.detach().float()
        if self.training:
            measure_thresholds_(
                self.thresholds, self.ready, wide, lengths, self.members, self.dilations, self.seed
            )
        found = random_kernels(
            wide, lengths, self.members, self.dilations, self.thresholds.to(wide.dtype), self.steps
        )
        return found.to(x.dtype if x.is_floating_point() else found.dtype)

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        parts = "" if self.parts is None else f", parts={self.parts}"
        return f"{self.n_in}, steps={self.steps}, groups={self.groups}, seed={self.seed}{parts}"


class _Scale(nn.Module):
    """Scale features to mean 0 and a deviation over all sequences seen in training.

    Not over a batch: those of sequences of similar lengths would hide what lengths tell.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x):
            self._add(x.detach())
        return (x - self.mean) * (self.deviation * (self.variance + _LEAST).rsqrt())

    def _add(self, x: Tensor) -> None:
        self.count += x.shape[0]
        share = x.shape[0] / self.count
        variance, mean = torch.var_mean(x, 0, correction=0)
        apart = mean - self.mean
        self.variance += share * (variance - self.variance + (1 - share) * apart.square())
        self.mean += share * apart


class Rocket(nn.Module):
    """A linear model on features of whole sequences that are not trained: `RandomKernels`.

    Features are scaled to mean 0 and one deviation over all sequences that training has seen so
    far. All of them together have the variance 1000, so that outputs learn as fast whatever the
    number of features. Maps sequences ``(T, N, n_in)``, with `lengths` ``(N,)`` if some have fewer
    than T steps, to an output of each, ``(N, n_out)``.

    With so many features, samples unlike those it was trained on get large outputs: if nearly all
    weight lies on one class, the others may still be predicted.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    steps, groups, seed, parts
        As in `RandomKernels`.
    dropout
        The fraction of features that training drops.

    Attributes
    ----------
    weight_decay
        Of AdamW, with which the weights, but not the biases, are trained unless another is asked
        for: there are far more of them than most sets have sequences.

    Raises
    ------
    ValueError, RuntimeError
        As `RandomKernels`; or `dropout` is not from 0 to 1.

    Examples
    --------
    >>> Rocket(3, 2, steps=50)(torch.randn(50, 8, 3)).shape
    torch.Size([8, 2])
    """

    weight_decay: float = 1.0

    def __init__(
        self,
        n_in: int,
        n_out: int,
        steps: int,
        groups: int = 24,
        dropout: float = 0.0,
        seed: int = 0,
        parts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.n_in: int = n_in
        self.n_out: int = n_out
        self.steps: int = steps
        self.groups: int = groups
        self.dropout: float = dropout
        self.seed: int = seed
        self.parts: tuple[int, ...] | None = parts
        self.kernels: RandomKernels = RandomKernels(n_in, steps, groups, seed, parts)
        features = self.kernels.thresholds.numel()
        self.scale: _Scale = _Scale(features, _DEVIATION / math.sqrt(features))
        self.drop: nn.Dropout = nn.Dropout(dropout)
        self.linear: nn.Linear = nn.Linear(features, n_out)
        # A feature that is constant in training keeps the weight 0, whatever it is later.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        features = self.drop(self.scale(self.kernels(x, lengths)))
        found: Tensor = self.linear(features)
        # The bias moves outputs as far as all features together, to levels and rare classes.
        return found + (_DEVIATION - 1) * self.linear.bias
