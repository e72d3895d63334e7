"""Layers that measure their first batch, with one result on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..data.sequences import Batch, to_device
from ..nn import RandomKernels
from ..nn.earlier_steps import in_context
from ..nn.stateful import Stateful, in_mode

if TYPE_CHECKING:
    from .learner import Learner

__all__ = ["measure_first_batch", "measures"]


def measures(model: nn.Module) -> bool:
    """Whether a layer of a model has yet to measure its first batch.

    Examples
    --------
    >>> measures(nn.Sequential(RandomKernels(1, steps=20))), measures(nn.Linear(1, 1))
    (True, False)
    """
    return any(isinstance(m, RandomKernels) and not bool(m.ready) for m in model.modules())


def measure_first_batch(
    learner: Learner, batch: Batch | None, weight: float, run: Callable[[Stateful, Batch], object]
) -> None:
    """Let layers measure a batch, of which each rank has a part; nothing is trained. Collective.

    Without it each rank would keep what it sees itself, and compiled models could not measure.

    Parameters
    ----------
    learner
        The model's learner.
    batch
        The rank's part; None: it has none.
    weight
        How much this part counts.
    run
        Runs the model on a batch as training does, by its loss.
    """
    model = learner.model
    if batch is not None and weight:
        m = Stateful(in_context(model, learner.spec.context))
        with in_mode(model, training=False), torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, RandomKernels):
                    layer.training = True
            run(m, to_device(batch, learner.device))
    if not learner.replicas.alone:
        learner.replicas.trained(0.0 if measures(model) else weight)
        learner.replicas.make_common(model)
