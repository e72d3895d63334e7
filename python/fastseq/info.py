"""`info`: versions, devices, kernels and transport in use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import h5py
import numpy as np
import torch

from . import distributed
from .estimator import Estimator, learner_of
from .nn import ops as _ops
from .nn.recurrent import kernels
from .training.known_optimizers import describe_step
from .training.native_layers import has_bf16
from .training.native_step import native_obstacle

__all__ = ["info"]


def info(est: Estimator | None = None) -> dict[str, Any]:
    """Return versions, devices, MPI, kernels and transport in use, as a dict of plain values.

    Collective under a launcher, as it starts MPI. In the shell: ``python -m fastseq info``.

    Parameters
    ----------
    est
        An estimator: also describe how `fit` runs it, and why if it cannot run faster.

    Returns
    -------
    dict
        ``"fastseq"``, ``"python"``, ``"torch"``, ``"numpy"`` and ``"h5py"``, their versions;
        ``"machine"``, ``"devices"``, ``"threads"``; ``"kernels"``, which of fastseq's run here, and
        their library; ``"mpi"``; and ``"ranks"``. With `est`, also ``"updates"``, ``"optimizer"``,
        ``"recurrent layers"``, ``"gradients"`` and ``"padding"``, in words.

    Raises
    ------
    MissingFeatureError, CommunicationError
        A launcher has started several ranks, and they cannot work together; see
        `distributed.world`.

    Examples
    --------
    >>> sorted(info()["ranks"])
    ['local_size', 'rank', 'size', 'transport']
    """
    comm = distributed.world()
    cuda = torch.cuda.is_available()
    obstacle = _ops.gpu_obstacle(torch.cuda.current_device() if cuda else 0)
    return {
        "fastseq": importlib.metadata.version("fastseq-torch"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else ["cpu"],
        "threads": torch.get_num_threads(),
        "kernels": {
            "cpu": _ops.active_isa,
            "bf16": has_bf16(),
            "cuda": f"no: {obstacle}" if obstacle else True,
            # for torch.ops.load_library, where exported programs run
            "library": sys.modules["fastseq._C"].__file__,
        },
        "mpi": distributed.mpi_library() or "not built",
        "ranks": {
            "rank": comm.rank,
            "size": comm.size,
            "local_size": comm.local_size,
            "transport": comm.transport,
        },
        **({} if est is None else _of_estimator(est)),
    }


def _updates(est: Estimator) -> str:
    reason = native_obstacle(learner_of(est))
    if reason is not None:
        return f"by PyTorch: {reason}"
    if est.amp is None:
        return "in C++, several at a time"
    if has_bf16():
        return "in C++, several at a time, with products of large layers in bf16"
    return "in C++, several at a time, in fp32, as the processor has no instructions for bf16"


def _of_estimator(est: Estimator) -> dict[str, Any]:
    """Describe how `fit` runs, topic by topic."""
    return {
        "updates": _updates(est),
        "optimizer": describe_step(est.optimizer),
        "recurrent layers": kernels(est.model),
        "gradients": learner_of(est).replicas.exchange or "not averaged yet",
        "padding": f"{est.padding_:.1%} of the time steps of the last fit",
    }
