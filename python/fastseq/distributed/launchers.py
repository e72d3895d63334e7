"""Which launcher started this process, as which of its ranks: `mpirun`, `srun`, `torchrun`."""

from __future__ import annotations

import dataclasses
import os
import re

from ..errors import CommunicationError

__all__ = ["Launch", "found_launch", "is_rank", "note_rank", "slurm_launch"]

# Variables that Open MPI, MPICH and its relatives, PMIx and MVAPICH set for their processes.
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# Variables that differ between launches, and between ranks.
_OF_A_LAUNCH = (
    *("PMIX_NAMESPACE", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_JOBID", "PMI_ID", "PMI_RANK"),
    *("PMI_FD", "PMI_PORT", "MV2_COMM_WORLD_RANK", "SLURM_JOB_ID", "SLURM_STEP_ID"),
    *("SLURM_PROCID", "RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)  # fmt: skip
# Where a rank notes its process ID: its children inherit the launcher's variables.
_RANK_PROCESS = "FASTSEQ_RANK_PROCESS"


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process' place among those that a launcher started.

    Parameters
    ----------
    launcher
        Its name.
    mpi
        Whether ranks find each other through MPI; the rest is meant for those that don't.
    rank, size
        This process' number, and how many there are; 0 if the launcher does not say.
    address, port
        Where they find each other: a store of torch.distributed, which `hosted` by the launcher is
        there, and else is rank 0's to make.
    hosted
        See above.
    attempt
        What tells this start of the ranks from others at the same store.
    """

    launcher: str
    mpi: bool
    rank: int = 0
    size: int = 1
    address: str = ""
    port: int = 0
    hosted: bool = False
    attempt: str = ""


def found_launch() -> Launch | None:
    """Return the launch that made this process a rank; None: it is no rank.

    Raises
    ------
    CommunicationError
        Variables of a launcher are missing or wrong, or two launchers started it.
    """
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    mpi = any(name in os.environ for name in _MPI)
    if elastic:
        _refuse_doubled_agents()
    if mpi and not elastic:
        _refuse_other_numbers()
        sizes = [os.environ.get(name, "") for name in (*_MPI_SIZES, "SLURM_STEP_NUM_TASKS")]
        return Launch("the launcher", True, size=next((int(n) for n in sizes if n.isdecimal()), 0))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _torch_launch()
    return slurm_launch()


def is_rank() -> bool:
    """Return whether a launcher started this process, rather than one of its ranks."""
    if found_launch() is None:
        return False
    process, _, launch = os.environ.get(_RANK_PROCESS, "").partition(" ")
    return launch != _launch_text() or process == str(os.getpid())


def note_rank() -> None:
    """Tell this process' children that they are no ranks."""
    os.environ[_RANK_PROCESS] = f"{os.getpid()} {_launch_text()}"


def slurm_launch() -> Launch | None:
    """Return the launch of one of several ranks of `srun` that find each other without MPI."""
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    rank, size = _numbers("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    several = os.environ.get("SLURM_STEP_NUM_NODES", "1") != "1"
    address = os.environ.get("MASTER_ADDR") or (_first_host(nodes) if several else "127.0.0.1")
    step = [os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    numbers = [int(part) if part.isdecimal() else 0 for part in step]
    # A port for each step, of those that are not handed out to connections.
    port = os.environ.get("MASTER_PORT") or str(20000 + (numbers[0] * 31 + numbers[1]) % 12000)
    if not _is_port(port):
        raise CommunicationError(f"MASTER_PORT={port!r} is not a port: unset it, or set a free one")
    return Launch("srun", False, rank, size, address, int(port), attempt="/".join(step))


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 65536


def _torch_launch() -> Launch | None:
    rank, size = _numbers("torchrun", "RANK", "WORLD_SIZE")
    if size == 1:
        return None
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not _is_port(port):
        raise CommunicationError(
            f"RANK={rank} and WORLD_SIZE={size} say that this is one of {size} processes, but "
            f"MASTER_ADDR={address!r} and MASTER_PORT={port!r} do not say where they meet: start "
            "them with torchrun, or pass comm=None if the runs are independent"
        )
    attempt = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch("torchrun", False, rank, size, address, int(port), hosted, "/".join(attempt))


def _numbers(launcher: str, rank: str, size: str) -> tuple[int, int]:
    """Return a rank and a number of ranks from a launcher's variables."""
    texts = {name: os.environ[name] for name in (rank, size)}
    if all(text.isdecimal() for text in texts.values()):
        numbers = [int(text) for text in texts.values()]
        if numbers[0] < numbers[1]:
            return numbers[0], numbers[1]
    said = ", ".join(f"{name}={text!r}" for name, text in texts.items())
    raise CommunicationError(
        f"the variables of {launcher} do not hold a rank and a number of ranks: {said}; unset "
        "them, or start the ranks with the launcher"
    )


def _refuse_other_numbers() -> None:
    """Raise if torch's variables name another rank than MPI's."""
    pairs = [
        (("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"), "RANK"),
        (_MPI_SIZES, "WORLD_SIZE"),
    ]
    if not all(name in os.environ for _, name in pairs):
        return
    for names, name in pairs:
        mpi = next((os.environ[each] for each in names if each in os.environ), None)
        if mpi is not None and mpi != os.environ[name]:
            raise CommunicationError(
                f"two launchers started this process: MPI's variables say {mpi}, but "
                f"{name}={os.environ[name]}; use one launcher, or unset {name}"
            )


def _refuse_doubled_agents() -> None:
    """Raise if a launcher started several torchruns that do not know of each other."""
    outer = next(
        (os.environ[n] for n in (*_MPI_SIZES, "SLURM_STEP_NUM_TASKS") if n in os.environ), "1"
    )
    agents = os.environ.get("GROUP_WORLD_SIZE", "1")
    if outer not in ("1", agents):
        raise CommunicationError(
            f"two launchers started this process: one started torchrun {outer} times, but torchrun "
            f"expects {agents}; use one launcher, or pass torchrun --nnodes {outer} and "
            "--rdzv-endpoint"
        )


def _first_host(nodes: str) -> str:
    """Return the first of Slurm's hosts, which it writes ``node[003-007,9],other``.

    Examples
    --------
    >>> _first_host("node[003-007,9],other"), _first_host("a-1,b"), _first_host("n1x[2,3]y")
    ('node003', 'a-1', 'n1x2y')
    """
    first = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^,]*)", nodes)
    if first is None:
        raise CommunicationError(
            f"SLURM_STEP_NODELIST={nodes!r} names no host: set MASTER_ADDR to rank 0's"
        )
    return "".join(part or "" for part in first.groups())


def _launch_text() -> str:
    return "/".join(os.environ.get(name, "") for name in _OF_A_LAUNCH)
