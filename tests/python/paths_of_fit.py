"""Tests of `fit` with updates in C++, where they can be, and with all of them by torch."""

from __future__ import annotations

import pytest

from fastseq.training import fit
from fastseq.training.loop import Trainer


def parametrize(metafunc: pytest.Metafunc, modules: set[str], sample: set[str]) -> None:
    """Run the tests of some modules both ways: by torch only those of a sample, or with slow tests."""
    name = metafunc.module.__name__
    if name in modules:
        metafunc.fixturenames.append("updates_by")
        by_torch = pytest.param("torch", marks=() if name in sample else pytest.mark.slow)
        metafunc.parametrize("updates_by", ["fastseq", by_torch], indirect=True)


@pytest.fixture
def updates_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `fit` run updates in C++ where it can, or always by torch."""
    if request.param == "torch":
        monkeypatch.setattr(fit, "_trainer_for", lambda learner: Trainer)
