import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from updates import by_torch, natively, parametrize, updates_by

import fastseq as fs

__all__ = ["by_torch", "natively", "updates_by"]  # fixtures

# The programs of the environment, also where it is not active.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Processes that test side by side must not compile into one folder.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    shared = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}_{worker}"

hypothesis.settings.register_profile("fastseq", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("fastseq")


# Run with updates by torch, too.
OF_FIT = {
    "test_bad_input", "test_callback_protocol", "test_callbacks_resumed", "test_callbacks_schedules",
    "test_callbacks_stopping", "test_changing_models", "test_checkpoint", "test_checkpoint_contents",
    "test_learning", "test_losses", "test_missing_values", "test_nonfinite_data",
    "test_optimizers_in_fit", "test_scaled_training", "test_training", "test_unequal_lengths",
    "test_validation",
}  # fmt: skip
SAMPLE = {"test_optimizers_in_fit", "test_training"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, OF_FIT, SAMPLE)


def pytest_report_header() -> str:
    torchs = torch.backends.cpu.get_cpu_capability()
    return f"instruction sets: torch {torchs}, fastseq {fs.info()['kernels']['cpu']}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_figures() -> Iterator[None]:
    """Close the figures that a test leaves to pyplot, which warns of many."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


@pytest.fixture
def in_double() -> Iterator[None]:
    """Make models in double precision, in which it makes no difference which kernels run them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
