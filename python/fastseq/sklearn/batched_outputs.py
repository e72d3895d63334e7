"""Predictions of many samples, some of them at a time: outputs of all steps take memory."""

from __future__ import annotations

import numpy as np

from ..data.samples_first import SamplesFirst
from ..estimator import Estimator
from .inputs.input_checks import Array, Inputs, Items

__all__ = ["predicted"]

_STEPS = 2**21  # of sequences, run at once


def predicted(est: Estimator, inputs: Inputs, *, per_step: bool) -> Items:
    """Return outputs ``(N, K)``, the last of each sequence, or of all steps.

    Parameters
    ----------
    est
        The fitted estimator.
    inputs
        The samples.
    per_step
        Whether to return outputs of all steps: ``(N, T, K)`` or a list of ``(T_i, K)``.
    """
    batchsize = est.spec.batchsize
    together = batchsize * max(_STEPS // (inputs.steps * batchsize), 1)  # whole batches
    found: list[Array] = []
    for begin in range(0, inputs.count, together):
        end = min(begin + together, inputs.count)
        if isinstance(inputs.x, list):
            outputs = est.predict(inputs.x[begin:end])
            found += outputs if per_step else [np.stack([a[-1] for a in outputs])]
            continue
        x = inputs.x if isinstance(inputs.x, SamplesFirst) else SamplesFirst(inputs.x)
        outputs = est.predict(x.part(begin, end))
        found.append(outputs.swapaxes(0, 1) if per_step else outputs[-1].copy())
    if isinstance(inputs.x, list) and per_step:
        return found
    return np.concatenate(found)
