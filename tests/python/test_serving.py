"""Services that stop, and go on with the next step of all series."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import Custom, chain
from saved import data, estimator, fitted, fresh, load, same
from torch import nn

import fastseq as fs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("model", [chain, Custom, lambda: fs.nn.GRU(3, 1, 2)])
def test_a_service_stops_and_goes_on(model, path):
    """With the next steps of all series, as if it had not stopped."""
    x, y = data(steps=40)
    model = model()
    est = estimator(model, scale_x="standard", scale_y="standard").fit(x[:20], y[:20])
    est.predict(x[:20])
    uninterrupted = copy.deepcopy(est)
    for t in range(20, 40):
        if t % 3 == 0:
            est.save(path, state=True)
            est = load(path, copy.deepcopy(model) if isinstance(model, Custom) else None)
        assert torch.equal(est.step(x[t]), uninterrupted.step(x[t]))
    est.save(path, state=True)
    same(load(path, copy.deepcopy(model)).predict(x[:3], reset=False),
         uninterrupted.predict(x[:3], reset=False))  # fmt: skip


def test_another_process_goes_on(path):
    x, _ = data()
    est = fitted()
    est.predict(x[:10])
    est.save(path, state=True)
    np.save(path.with_suffix(".npy"), x[10].numpy())
    script = """
        import sys, numpy as np, torch, fastseq as fs
        est = fs.Estimator.load(sys.argv[1], device="cpu", progress=False)
        print(est.step(np.load(sys.argv[2])).numpy().tobytes().hex())
        assert "fastseq.sklearn" not in sys.modules
    """
    script = "\n".join(line.strip() for line in script.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", script, path, path.with_suffix(".npy")],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert done.stdout.strip() == est.step(x[10]).numpy().tobytes().hex()


def test_state_is_left_out_unless_asked_for(path):
    x, _ = data()
    est = fitted()
    est.predict(x)
    assert est.get_state() is not None
    est.save(path)
    assert load(path).get_state() is None
    same(load(path).step(x[0]), fresh(est).step(x[0]))
    fresh(est).save(path, state=True)
    assert load(path).get_state() is None
    with pytest.raises(TypeError, match="state must be True or False"):
        est.save(path, state=est.get_state())


def test_the_loaded_state_is_a_copy(path):
    x, _ = data()
    est = fitted()
    est.predict(x)
    est.save(path, state=True)
    loaded = load(path)
    est.step(x[0])
    path.unlink()
    again = loaded.get_state()
    loaded.step(x[0])
    assert torch.equal(loaded.get_state()[0][0], est.get_state()[0][0])
    assert not torch.equal(again[0][0], est.get_state()[0][0])


class Sum(NamedTuple):
    total: torch.Tensor


class Summing(nn.Module):
    """Its state is of a class of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, state=None):
        sums = (x * self.weight).cumsum(0) + (0 if state is None else state.total)
        return sums, Sum(sums[-1])


def test_a_state_of_ones_own_class(path):
    x, _ = data()
    est = estimator(Summing())
    est.predict(x)
    est.save(path)
    same(load(path, Summing).predict(x), est.predict(x))
    before = path.read_bytes()
    with pytest.raises(
        TypeError, match=r"the state is a Sum, which a file cannot hold.*state=False"
    ):
        est.save(path, state=True)
    assert path.read_bytes() == before
    est = estimator(fs.nn.Chain(Summing(), nn.Linear(3, 1)))
    est.predict(x)
    with pytest.raises(TypeError, match=r"the state\[0\] is a Sum"):
        est.save(path, state=True)
