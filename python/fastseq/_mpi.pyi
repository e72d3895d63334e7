"""The native communicator over MPI; built from csrc/python/mpi_module.cpp."""

from ._comm import Communicator

def library_version() -> str: ...
def connect(
    fortran_handle: int, transport: str, timeout: float, ranks_per_node: int, half_wire: bool
) -> Communicator: ...
