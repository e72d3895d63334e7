"""A fitted module that takes samples in the layout of scikit-learn."""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn

from ..estimator import Estimator
from ..inference.scaled_model import ScaledModel
from ..nn import RandomKernels
from ..nn.token_ids import number_of_ids
from ..training.argument_checks import input_dtype

__all__ = ["SampleModule"]


class SampleModule(nn.Module):
    """Samples in the layout of X to outputs ``(N, K)``, or per step ``(N, T, K)``, both unscaled.

    Parameters
    ----------
    est
        The fitted estimator, whose model is copied.
    per_step
        Whether there is an output for each step.
    whole
        Whether the model takes a whole sequence as one step.
    channels_first
        Whether samples are ``(N, F, T)``, images ``(N, C, W, H)``.
    rows
        What rows of samples with two axes are: ``"series"`` of one feature or ``"samples"`` of one
        step; None: samples have three axes.
    image
        ``(W, H, C)`` if samples are images, ``(N, W, H, C)`` or, of one channel, ``(N, W, H)``;
        None: they are not.
    """

    def __init__(
        self,
        est: Estimator,
        *,
        per_step: bool,
        whole: bool,
        channels_first: bool,
        rows: str | None,
        image: tuple[int, int, int] | None,
    ) -> None:
        super().__init__()
        model, scaling = copy.deepcopy(est.model), est.scaling_
        scaled = scaling is not None and scaling.x is not None
        self._ids = number_of_ids(model) is not None
        self._dtype = None if scaled or self._ids else input_dtype(model)
        scalings = (None, None) if scaling is None else (scaling.x, scaling.y)
        self.scaled: ScaledModel = ScaledModel(model, *scalings)
        self._per_step, self._whole = per_step, whole
        self._channels_first, self._rows, self._image = channels_first, rows, image
        self._flat = any(isinstance(layer, RandomKernels) for layer in model.modules())
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Run on samples of one length, without missing values."""
        if self._flat and isinstance(x, Tensor) and x.requires_grad:
            warnings.warn(
                'features of "rocket" have no gradient, so gradients with respect to x are those '
                'of the other networks alone, or 0: train module="lstm-fcn" to explain it',
                stacklevel=2,
            )
        x = self._sequences(x)
        x = x.flatten(1).unsqueeze(0) if self._whole else x.swapaxes(0, 1)
        if self._ids and not x.is_floating_point():
            x = x.long()
        y, _ = self.scaled(x if self._dtype is None else x.to(self._dtype))
        found: Tensor = y if y.dim() == 2 else y.swapaxes(0, 1) if self._per_step else y[-1]
        return found

    def _sequences(self, x: Tensor) -> Tensor:
        """Return samples as ``(N, T, F)``; images are sequences of one step."""
        dims = x.dim() if isinstance(x, Tensor) else 0
        if self._image is not None:
            images = x.unsqueeze(-1) if dims == 3 else x
            if dims == 4 and self._channels_first:
                images = x.movedim(1, -1)
            if dims in (3, 4) and images.shape[1:] == self._image:
                return images.flatten(1).unsqueeze(1)
        elif dims == 3:
            return x.swapaxes(1, 2) if self._channels_first else x
        elif dims == 2 and (self._ids or self._rows == "series"):
            return x.unsqueeze(2)
        elif dims == 2 and self._rows is not None:
            return x.unsqueeze(1)
        form = "(N, F, T)" if self._channels_first else "(N, T, F)"
        if self._rows is not None:
            form = "(N, T)" if self._rows == "series" else "(N, F)"
        elif self._image is not None:
            form = "(N, C, W, H)" if self._channels_first else "(N, W, H, C)"
            form += f" with (W, H, C) = {self._image}"
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor of samples {form}, got {got}")
