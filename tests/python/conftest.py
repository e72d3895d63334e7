import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import fastseq as fs

# Processes that test side by side must not compile into one folder.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    shared = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}_{worker}"

hypothesis.settings.register_profile("fastseq", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fastseq")


def pytest_report_header() -> str:
    torchs = torch.backends.cpu.get_cpu_capability()
    return f"instruction sets: torch {torchs}, fastseq {fs.info()['kernels']['cpu']}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def in_double() -> Iterator[None]:
    """Make models in double precision, in which it makes no difference which kernels run them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
