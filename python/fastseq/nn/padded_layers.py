"""Convolution and normalisation of sequences of different lengths: padding changes nothing.

They take and return ``(N, C, T)``, as PyTorch's do, and a mask ``(N, 1, T)`` that is true at the
steps of the sequences and false past their ends; None: all sequences have T steps. Outputs past
the ends are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PaddedBatchNorm", "PaddedConv", "masked"]


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x` with zeros past the ends."""
    return x if mask is None else x.masked_fill(~mask, 0)


class PaddedConv(nn.Conv1d):
    """A convolution over time with as many steps out as in, of sequences of different lengths.

    Maps ``(N, n_in, T)`` to ``(N, n_out, T)``. A `mask` beside it, ``(N, 1, T)`` or None, is true
    at the steps of the sequences: what is past their ends counts as zeros, and becomes zeros.

    Parameters
    ----------
    n_in, n_out
        Numbers of channels.
    kernel_size
        Steps of the kernel.
    dilation
        Distance of these steps.
    causal
        Whether an output sees no later step; else the kernel is centred.
    bias
        Whether a bias is added.

    Raises
    ------
    RuntimeError
        In a call: the input has other channels than `n_in`, or the mask another shape.

    Examples
    --------
    >>> conv = PaddedConv(1, 1, 3, causal=True, bias=False)
    >>> _ = nn.init.ones_(conv.weight)
    >>> conv(torch.ones(1, 1, 4))
    tensor([[[1., 2., 3., 3.]]], grad_fn=<ConvolutionBackward0>)
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        causal: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(n_in, n_out, kernel_size, dilation=dilation, bias=bias)
        self.causal = causal

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: A002
        """Convolve; see the module."""
        more = self.dilation[0] * (self.kernel_size[0] - 1)
        before = more if self.causal else more // 2
        x = functional.pad(masked(input, mask), (before, more - before))
        return masked(super().forward(x), mask)


class PaddedBatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` over the steps of the sequences, not over their padding.

    Maps ``(N, num_features, T)`` to the same shape. A `mask` beside it, ``(N, 1, T)`` or None, is
    true at the steps of the sequences: what is past their ends does not count, and becomes zeros.
    A batch with a single value per channel, at which PyTorch's raises, becomes the bias.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As for `torch.nn.BatchNorm1d`.

    Raises
    ------
    RuntimeError
        In a call: the input has other channels than `num_features`, or the mask another shape.

    Examples
    --------
    >>> norm = PaddedBatchNorm(1, affine=False)
    >>> mask = torch.tensor([[[True, True, False]]])
    >>> norm(torch.tensor([[[1.0, 3.0, 100.0]]]), mask)
    tensor([[[-1.0000,  1.0000,  0.0000]]])
    """

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: A002
        """Normalise; see the module."""
        if input.ndim != 3 or input.shape[1] != self.num_features:
            raise RuntimeError(
                f"input must be (N, {self.num_features}, T), got {tuple(input.shape)}"
            )
        if not self.training or (mask is None and input.shape[0] * input.shape[2] > 1):
            return masked(super().forward(input), mask)
        if mask is None:
            mask = torch.ones_like(input[:, :1], dtype=torch.bool)
        x, kept = input.float() if input.dtype.itemsize < 4 else input, mask.to(input.dtype)
        count = kept.sum().clamp(min=1)
        mean = (masked(x, mask).sum((0, 2)) / count).view(1, -1, 1)
        centred = masked(x - mean, mask)
        variance = centred.square().sum((0, 2)) / count
        self._remember(mean.detach().flatten(), variance.detach(), count)
        y = centred * (variance + self.eps).rsqrt().view(1, -1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1) + self.bias.view(1, -1, 1)
        return masked(y.to(input.dtype), mask)

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics, as PyTorch does; not from a single value."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:
                share = 1 / self.num_batches_tracked.item()
            several = (count > 1).to(mean.dtype) * share
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean += several * (mean - self.running_mean)
            self.running_var += several * (unbiased - self.running_var)
