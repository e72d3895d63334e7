"""Layers on images: `OnImages`, and `ImageBuilder`, which makes a small convolutional network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ImageBuilder", "OnImages"]


class OnImages(nn.Sequential):
    """Layers on images, time-major: each step ``(N, W·H·C)`` holds one image per sequence.

    The layers get them as PyTorch's convolutions do, ``(N, C, W, H)``, and return ``(N, K)``. The
    module maps ``(T, N, W · H · C)`` to ``(T, N, K)``.

    Parameters
    ----------
    shape
        Width, height and number of channels of an image, ``(W, H, C)``.
    *layers
        The layers, one after another.

    Raises
    ------
    ValueError
        In a call: the layers return something else than ``(N, K)``.
    RuntimeError
        In a call: steps do not have W · H · C features.

    Examples
    --------
    >>> layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)
    >>> OnImages((8, 8, 3), *layers)(torch.zeros(1, 5, 8 * 8 * 3)).shape
    torch.Size([1, 5, 2])
    """

    def __init__(self, shape: Sequence[int], *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.shape: tuple[int, ...] = tuple(shape)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Run; see the module."""
        steps, count = input.shape[:2]
        y = input.reshape(-1, *self.shape).movedim(-1, 1)
        for layer in self:
            y = layer(y)
        if y.dim() != 2 or len(y) != steps * count:
            raise ValueError(
                f"layers on images must return (N, K), got {tuple(y.shape)} for N = {steps * count}"
                ": end them with torch.nn.Flatten() and torch.nn.Linear(…, K)"
            )
        return y.view(steps, count, -1)

    def extra_repr(self) -> str:
        """Return the images' shape."""
        return f"shape={self.shape}"


@dataclasses.dataclass(frozen=True)
class ImageBuilder:
    """Builder of a convolutional network for images ``(N, W, H, C)`` or ``(N, W, H)``.

    Blocks of a convolution, batch normalisation, a ReLU, and pooling that halves width and height
    if they are at least 4; then the mean over all pixels, and a linear layer. The module maps
    ``(N, C, W, H)`` to ``(N, n_out)``.

    Parameters
    ----------
    channels
        Channels of the convolutions, one block each.
    kernel_size
        Pixels of their kernels in each direction.
    dropout
        The fraction of the last block's means that training drops.

    Raises
    ------
    ValueError, TypeError
        When it builds: ``n_in`` is not ``(W, H, C)``, or `dropout` is not from 0 to 1.

    Examples
    --------
    >>> ImageBuilder((16, 32))((28, 28, 1), 10, torch.Generator())(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 10])
    """

    channels: tuple[int, ...] = (32, 64)
    kernel_size: int = 3
    dropout: float = 0.0
    images = True

    def __call__(
        self,
        n_in: tuple[int, int, int],
        n_out: int,
        rng: torch.Generator,  # noqa: ARG002
    ) -> nn.Module:
        """Make the module."""
        width, height, before = n_in
        layers: list[nn.Module] = []
        for channels in self.channels:
            by = 1 + (width >= 4), 1 + (height >= 4)
            layers += [
                nn.Conv2d(before, channels, self.kernel_size, padding="same", bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(by),
            ]
            before, width, height = channels, width // by[0], height // by[1]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(before, n_out))
