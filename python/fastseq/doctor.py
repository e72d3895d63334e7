"""What may keep fastseq from running well on this machine, and what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import distributed
from .distributed.launchers import found_launch
from .errors import FastseqError
from .nn import ops as _ops
from .training.native_layers import has_bf16

__all__ = ["Finding", "examine", "report"]

# What a rank's part of shared memory should hold at least: gradients of a few million parameters.
_LEAST_SHARED = 256 * 2**20
_SHARED = Path("/dev/shm")  # noqa: S108 (where POSIX shared memory is, no temporary file)
_OPTIONAL = {
    "sklearn": "classifiers, regressors and forecasters: pip install scikit-learn",
    "pandas": "frames of data and forecasts: pip install pandas",
    "matplotlib": "plots: pip install matplotlib",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about one topic.

    Parameters
    ----------
    topic
        What was looked at.
    text
        What was found.
    advice
        What to do about it; empty: nothing.
    """

    topic: str
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at processor, threads, launcher, MPI, shared memory, GPUs, compilers and packages.

    Under a launcher it looks at this rank, without starting MPI.

    Examples
    --------
    >>> [finding.topic for finding in examine()][:3]
    ['processor', 'threads', 'launcher']
    """
    return [finding for look in _LOOKS for finding in look()]


def report(findings: list[Finding]) -> str:
    """Return lines for a terminal, those that ask for something marked by "!".

    Examples
    --------
    >>> print(report([Finding("threads", "8"), Finding("GPU", "none", "buy one")]))
      threads  8
    ! GPU      none
               buy one
    >>> print(report([Finding("threads", "8")]))
      threads  8
    nothing to do
    """
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        mark = "!" if finding.advice else " "
        lines.append(f"{mark} {finding.topic.ljust(width)}  {finding.text}")
        if finding.advice:
            lines.append(f"{' ' * (width + 4)}{finding.advice}")
    if not any(finding.advice for finding in findings):
        lines.append("nothing to do")
    return "\n".join(lines)


def _processor() -> Iterator[Finding]:
    kernels = f"kernels for {_ops.active_isa}{', with bf16' if has_bf16() else ''}"
    limited = os.environ.get("FASTSEQ_ISA")
    advice = f"FASTSEQ_ISA={limited} limits them: unset it" if limited else ""
    yield Finding("processor", kernels, advice)


def _threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    ranks = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", 1)))
    each = f" in each of {ranks} processes" if ranks > 1 else ""
    text = f"{threads}{each}, on {cores} cores"
    advice = ""
    if cores and ranks > cores:
        advice = f"they wait for each other: start at most {cores} ranks on this machine"
    elif cores and threads * ranks > cores:
        advice = f"they wait for each other: set OMP_NUM_THREADS={cores // ranks}"
    yield Finding("threads", text, advice)


def _launcher() -> Iterator[Finding]:
    try:
        launch = found_launch()
    except FastseqError as error:
        yield Finding("launcher", "its variables do not fit", str(error))
        return
    text = "none: a single process" if launch is None else f"{launch.launcher}, rank {launch.rank}"
    yield Finding("launcher", text)


def _mpi() -> Iterator[Finding]:
    try:
        version = distributed.mpi_library()
    except (FastseqError, OSError, ImportError) as error:
        yield Finding("MPI", "its library does not load", str(error))
        return
    if version is not None:
        yield Finding("MPI", version.splitlines()[0].split(",")[0])
        return
    launcher = shutil.which("mpirun")
    advice = (
        "" if launcher is None else f"to use {launcher}, build fastseq again: it was built without"
    )
    yield Finding("MPI", "built without; torchrun and fastseq.launch need none", advice)


def _shared_memory() -> Iterator[Finding]:
    if not _SHARED.exists():
        return
    free = shutil.disk_usage(_SHARED).free
    advice = ""
    if free < _LEAST_SHARED:
        advice = "ranks of one machine need room for gradients: in a container, --shm-size=2g"
    yield Finding("shared memory", f"{free / 2**20:.0f} MiB free in {_SHARED}", advice)


def _gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        built = torch.version.cuda
        advice = ""
        if built is None and shutil.which("nvidia-smi"):
            advice = "this PyTorch is built for the CPU alone: install one with CUDA"
        yield Finding("GPUs", "none that PyTorch sees", advice)
        return
    obstacle = _ops.gpu_obstacle(torch.cuda.current_device())
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    advice = f"layers run by PyTorch's own kernels: {obstacle}" if obstacle else ""
    yield Finding("GPUs", f"{count}: {names}", advice)


def _compilers() -> Iterator[Finding]:
    found = [name for name in ("c++", "g++", "clang++", "nvcc", "cmake") if shutil.which(name)]
    advice = ""
    if not {"c++", "g++", "clang++"} & set(found):
        advice = "compile=True needs a C++ compiler, and so does building fastseq"
    yield Finding("compilers", ", ".join(found) or "none", advice)


def _packages() -> Iterator[Finding]:
    missing = [name for name in _OPTIONAL if importlib.util.find_spec(name) is None]
    if not missing:
        yield Finding("packages", ", ".join(_OPTIONAL))
    for name in missing:
        yield Finding("packages", f"no {name}", f"for {_OPTIONAL[name]}")


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _processor, _threads, _launcher, _mpi, _shared_memory, _gpus, _compilers, _packages,
)  # fmt: skip
