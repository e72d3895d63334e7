"""Mixed precision: autocast dtype and gradient scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim

from .._util.torch_internals import skips_on_device
from .._util.tree import Tree, tree_map
from .argument_checks import input_dtype

__all__ = ["Precision"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Mixed precision for ``Estimator(amp=…)`` by PyTorch: autocast and its gradient scaler.

    Updates in C++ round for themselves, see `NativeTrainer`.

    Parameters
    ----------
    amp
        None: the model's own dtype; ``"bf16"``; ``"fp16"``, with gradients scaled so that none
        overflows: updates where one does are skipped.
    device
        The model's device.

    Raises
    ------
    ValueError
        `amp` is something else.

    Examples
    --------
    >>> Precision("bf16", torch.device("cpu")).scales
    False
    """

    def __init__(self, amp: str | None, device: torch.device) -> None:
        if amp is not None and amp not in _DTYPES:
            raise ValueError(f'amp must be None, "bf16" or "fp16", got {amp!r}')
        self.amp = amp
        self._dtype = None if amp is None else _DTYPES[amp]
        self._device = device
        self._scaler: torch.amp.GradScaler | None = None
        self._scaled = False
        if amp == "fp16":
            self._scaler = torch.amp.GradScaler(device.type)
        self.scales: bool = self._scaler is not None

    def check(self, model: nn.Module) -> None:
        """Raise if the model's dtype does not go with `amp`."""
        if self._dtype is not None and input_dtype(model) == torch.float64:
            raise ValueError(f"amp={self.amp!r} needs a model in float32, got one in float64")

    @property
    def forward(self) -> AbstractContextManager[object]:
        """The context manager for the forward pass."""
        if self._dtype is None:
            return _AS_IT_IS
        return torch.autocast(self._device.type, self._dtype)

    def widened(self, state: Tree, model: nn.Module) -> Tree:
        """Return a state as the model has it in evaluation, which is not in mixed precision."""
        if self._dtype is None:
            return state
        wide = input_dtype(model)
        return tree_map(lambda a: a.to(wide) if a.dtype == self._dtype else a, state)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, to be differentiated in its place."""
        if self._scaler is None:
            return loss
        self._scaled = True
        return self._scaler.scale(loss)

    def unscale(self, optimizer: optim.Optimizer) -> None:
        """Undo the scaling in the gradients."""
        if self._scaler is None:
            return
        if not self._scaled:  # a rank may have no part in the first update
            self.scaled(torch.zeros((), device=self._device))
        self._scaler.unscale_(optimizer)

    def waits(self, optimizer: optim.Optimizer) -> bool:
        """Whether the host reads if a gradient overflowed, before each update.

        It does not for torch's fused kernels, which read it on the device.
        """
        return self.scales and not skips_on_device(optimizer)

    def step(self, optimizer: optim.Optimizer) -> None:
        """Update, unless a gradient overflowed, and choose the next scale."""
        assert self._scaler is not None
        begun = _momenta_to_begin(optimizer)
        scale = self._scaler.get_scale() if begun else 0.0
        self._scaler.step(optimizer)
        self._scaler.update()
        if begun and self._scaler.get_scale() < scale:
            for param in begun:  # the kernel has skipped the update, but not begun a momentum
                optimizer.state[param].pop("momentum_buffer", None)

    def state_dict(self) -> dict[str, Any]:
        """Return the scaler's state."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)


_AS_IT_IS = nullcontext()


def _momenta_to_begin(optimizer: optim.Optimizer) -> list[Tensor]:
    """Return the parameters to which the next update by PyTorch's fused SGD gives a momentum.

    If it skips that update, the momentum is what was in memory before.
    """
    if not isinstance(optimizer, optim.SGD):
        return []
    return [
        param
        for group in optimizer.param_groups
        if group["fused"] and group["momentum"]
        for param in group["params"]
        if param.grad is not None and optimizer.state[param].get("momentum_buffer") is None
    ]
