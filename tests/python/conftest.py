import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from updates import by_torch, natively

import fastseq as fs
from fastseq.training import fit
from fastseq.training.loop import Trainer

__all__ = ["by_torch", "natively"]  # fixtures

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
    name = metafunc.module.__name__
    if name in OF_FIT:
        metafunc.fixturenames.append("updates_by")
        by_torch = pytest.param("torch", marks=() if name in SAMPLE else pytest.mark.slow)
        metafunc.parametrize("updates_by", ["fastseq", by_torch], indirect=True)


@pytest.fixture
def updates_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `fit` run updates in C++ where it can, or always by torch."""
    if request.param == "torch":
        monkeypatch.setattr(fit, "_trainer_for", lambda learner: Trainer)


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
