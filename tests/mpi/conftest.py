"""These tests run as `mpirun -n RANKS python -m pytest tests/mpi`: every rank runs all of them.

Or as `torchrun --nproc-per-node RANKS -m pytest tests/mpi`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fastseq as fs

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from started import UNDER_MPI
from updates import natively, parametrize, updates_by

__all__ = ["natively", "updates_by"]  # fixtures

# Run with updates by torch, too.
OF_FIT = {
    "test_callbacks", "test_changing_models", "test_checkpoint", "test_missing_values", "test_scaling",
    "test_training",
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, OF_FIT, set())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Leave out what is about MPI itself where the ranks were started without it."""
    left_out = [item for item in items if not UNDER_MPI and "mpi" in item.fixturenames]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def world() -> fs.distributed.Communicator:
    world = fs.distributed.world()
    if world.transport == "single":
        if os.environ.get("FASTSEQ_REQUIRE_MPI") == "1":
            pytest.fail("FASTSEQ_REQUIRE_MPI=1, but no launcher started this")
        pytest.skip("runs under mpirun, or torchrun")
    return world


@pytest.fixture
def mpi(world: fs.distributed.Communicator) -> ModuleType:
    """Return `mpi4py.MPI`, whose ranks these are."""
    from mpi4py import MPI

    return MPI


@pytest.fixture
def comm(world: fs.distributed.Communicator) -> fs.distributed.Communicator:
    return world


@pytest.fixture
def folder(comm: fs.distributed.Communicator, tmp_path: Path) -> Path:
    """Return rank 0's folder, to all."""
    return Path(comm.broadcast_bytes(str(tmp_path).encode(), 0).decode())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
