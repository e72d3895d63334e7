"""Random convolutions of whole sequences, and a linear model on their features: MiniRocket."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .ops import KERNELS, measure_thresholds_, random_kernels

__all__ = ["RandomKernels", "Rocket"]

_MOST = 9  # features that are summed
_LEAST = 1e-5  # is added to variances


class RandomKernels(nn.Module):
    """Features of whole sequences by many convolutions that are not trained: MiniRocket's [1]_.

    ``(T, N, F)`` to ``(N, 84 · groups)``. A group sums up some of the features at each step, drawn
    at random, and convolves the sums with 84 kernels of 9 taps with one dilation: the taps'
    weights are -1/3, and 2/3 at three of them. A feature is the fraction of steps at which such a
    convolution is above a threshold.

    Thresholds are quantiles of the convolutions over the first batch in training mode, at levels
    that are spread evenly; `Estimator.fit` takes their mean over all ranks. They are 0 before.

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
        Number of dilations, each with 84 kernels.
    seed
        Seed of what is drawn at random.

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
        A size is below 1; or sequences have another number of features.

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

    def __init__(self, n_in: int, steps: int, groups: int = 24, seed: int = 0) -> None:
        super().__init__()
        if min(n_in, steps, groups) < 1:
            raise ValueError(
                f"n_in, steps and groups must be at least 1, got {n_in}, {steps} and {groups}"
            )
        self.n_in, self.steps, self.groups, self.seed = n_in, steps, groups, seed
        largest = math.log2(max(1.0, (steps - 1) / 8))
        exponents = [largest * group / max(1, groups - 1) for group in range(groups)]
        self.dilations = [int(2**exponent + 1e-9) for exponent in exponents]
        self.register_buffer("members", torch.tensor(self._drawn()))
        self.register_buffer("thresholds", torch.zeros(groups, KERNELS))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def _drawn(self) -> list[list[int]]:
        """Draw each group's features; the logarithm of their number is uniform."""
        rng = torch.Generator("cpu").manual_seed(self.seed)
        most = min(self.n_in, _MOST)
        members = []
        for _ in range(self.groups):
            share = torch.rand((), generator=rng, device="cpu").item()
            count = min(most, int(2 ** (share * math.log2(most + 1))))
            own = torch.randperm(self.n_in, generator=rng, device="cpu")[:count].tolist()
            members.append(own + [self.n_in] * (most - count))
        return members

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; `lengths` are the sequences' numbers of steps, ``(N,)``."""
        if x.dim() != 3 or x.shape[2] != self.n_in:
            raise ValueError(f"x must be (T, N, {self.n_in}), got {tuple(x.shape)}")
        wide = x.detach() if x.dtype.itemsize >= 4 else x.detach().float()
        if self.training:
            measure_thresholds_(
                self.thresholds, self.ready, wide, lengths, self.members, self.dilations, self.seed
            )
        found = random_kernels(
            wide, lengths, self.members, self.dilations, self.thresholds.to(wide.dtype), self.steps
        )
        return found.to(x.dtype)

    def extra_repr(self) -> str:
        """Return how `repr` shows the arguments."""
        return f"{self.n_in}, steps={self.steps}, groups={self.groups}, seed={self.seed}"


class _Scale(nn.Module):
    """Scale features to mean 0 and deviation 1 over all sequences seen in training.

    Not over a batch: those of sequences of similar lengths would hide what lengths tell.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self._add(x)
        return (x - self.mean) * (self.variance + _LEAST).rsqrt()

    def _add(self, x: Tensor) -> None:
        self.count += x.shape[0]
        share = x.shape[0] / self.count
        variance, mean = torch.var_mean(x, 0, correction=0)
        apart = mean - self.mean
        self.variance += share * (variance - self.variance + (1 - share) * apart.square())
        self.mean += share * apart


class Rocket(nn.Module):
    """A linear model on features of whole sequences that are not trained: `RandomKernels`.

    Features are scaled to mean 0 and deviation 1 over all sequences that training has seen so far.
    It returns one output per sequence, ``(N, n_out)``.

    Parameters
    ----------
    n_in, n_out
        Numbers of features and of outputs.
    steps, groups, seed
        As in `RandomKernels`.
    dropout
        The fraction of features that training drops.

    Attributes
    ----------
    weight_decay
        Of AdamW, with which the weights are trained unless another is asked for: there are far more
        of them than most sets have sequences.

    Examples
    --------
    >>> Rocket(3, 2, steps=50)(torch.randn(50, 8, 3)).shape
    torch.Size([8, 2])
    """

    weight_decay = 1.0

    def __init__(
        self,
        n_in: int,
        n_out: int,
        steps: int,
        groups: int = 24,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_in, self.n_out, self.steps, self.groups = n_in, n_out, steps, groups
        self.dropout, self.seed = dropout, seed
        self.kernels = RandomKernels(n_in, steps, groups, seed)
        self.scale = _Scale(groups * KERNELS)
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(groups * KERNELS, n_out)
        # A feature that is constant in training keeps the weight 0, whatever it is later.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the module."""
        found: Tensor = self.linear(self.drop(self.scale(self.kernels(x, lengths))))
        return found
