"""Whole jobs under mpirun, run in processes of their own: what they end with, and that they end."""

from __future__ import annotations

import pytest
from jobs import START, mpirun, seconds_since_it_failed


def test_an_error_that_nobody_catches_ends_all_ranks(tmp_path):
    done = mpirun(
        tmp_path,
        3,
        START
        + """
        |if comm.rank == 1:
        |    fails()
        |    raise KeyError("only here")
        |comm.allreduce_(torch.ones(3))  # the others wait
        """,
    )
    assert done.returncode != 0
    assert "KeyError: 'only here'" in done.stderr
    assert "rank 1 failed" in done.stderr
    assert seconds_since_it_failed(tmp_path) < 60


@pytest.mark.parametrize("code", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_rank_that_exits_early_is_announced(tmp_path, code):
    done = mpirun(
        tmp_path,
        3,
        START
        + f"""
        |if comm.rank == 2:
        |    sys.exit({code})
        |comm.barrier()
        """,
    )
    assert done.returncode != 0
    assert "rank 2 has exited" in done.stderr


def test_a_model_that_one_rank_alone_saves_asks_for_the_others(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |est = fs.Estimator(torch.nn.GRU(2, 1), fs.seqloss(torch.nn.MSELoss()), torch.optim.SGD,
        |                   dict(epochs=1, batchsize=2, seqsize=2))
        |if comm.rank == 0:
        |    est.save("model.safetensors")
        """,
    )
    assert done.returncode != 0
    assert "in save, rank 1 has exited; every rank must call save\n" in done.stderr
    assert not (tmp_path / "model.safetensors").exists()


def test_an_error_in_fit_ends_the_job_with_that_error(tmp_path):
    done = mpirun(
        tmp_path,
        3,
        START
        + """
        |from torch.nn.functional import mse_loss
        |x = torch.ones(10, 6, 2)
        |y = x[..., :1].clone()
        |y[5, 5] = float("nan")
        |est = fs.Estimator(torch.nn.GRU(2, 1), fs.seqloss(mse_loss), torch.optim.SGD,
        |                   dict(epochs=1, batchsize=2, seqsize=2))
        |est.fit(x, y)
        """,
    )
    assert done.returncode != 0
    assert (
        "fastseq.errors.NonFiniteError: y holds NaN at step 5, sequence 5, feature 0" in done.stderr
    )
    assert done.stderr.count("Traceback") == 1, done.stderr


def test_a_killed_rank_ends_the_job(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        START
        + """
        |import os, signal
        |for step in range(10**9):
        |    comm.allreduce_(torch.ones(1000))
        |    if step == 100 and comm.rank == 1:
        |        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    assert done.returncode != 0


@pytest.mark.slow
def test_only_rank_0_shows_progress_and_a_plain_script_needs_no_change(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import torch, fastseq as fs
        |from torch.nn.functional import mse_loss
        |x = torch.arange(320.0).sin().reshape(20, 8, 2)
        |est = fs.Estimator(torch.nn.GRU(2, 1), fs.seqloss(mse_loss), torch.optim.SGD,
        |                   dict(epochs=2, batchsize=2, seqsize=5))
        |print("done", est.fit(x, x[..., :1]).predict(x).shape)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done (20, 8, 1)") == 2
    assert done.stderr.count("epoch 2/2: loss ") == 1


@pytest.mark.slow
def test_mean_of_features_on_four_ranks_as_in_fluxutils(tmp_path):
    done = mpirun(
        tmp_path,
        4,
        """
        |import numpy as np, torch, fastseq as fs
        |from torch.nn.functional import mse_loss
        |x = np.random.default_rng(0).standard_normal((1000, 1000, 10), np.float32)
        |y = x.mean(2, keepdims=True)
        |model = fs.nn.Chain(torch.nn.LSTM(10, 10), torch.nn.Linear(10, 1))
        |spec = dict(epochs=10, batchsize=100, seqsize=100)
        |optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        |est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, spec, progress=False)
        |yhat = np.zeros_like(y)
        |est.fit(x, y).predict(x, out=yhat)
        |print("mse", float(((yhat - y) ** 2).mean()))
        """,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("mse")]
    assert len(errors) == 4
    assert max(errors) < 0.01


@pytest.mark.slow
def test_a_child_process_of_a_rank_is_alone(tmp_path):
    done = mpirun(
        tmp_path,
        2,
        """
        |import multiprocessing, os, sys, torch, fastseq as fs
        |def child(number):
        |    comm = fs.distributed.world()
        |    return comm.size, comm.transport
        |if __name__ == "__main__":
        |    comm = fs.distributed.world()
        |    with multiprocessing.get_context("spawn").Pool(1) as pool:
        |        print("child", pool.apply_async(child, (1,)).get(120), flush=True)
        |    if (pid := os.fork()) == 0:
        |        try:
        |            comm.barrier()
        |        except fs.CommunicationError as error:
        |            print("forked", fs.distributed.world().size, error, flush=True)
        |        os._exit(0)
        |    os.waitpid(pid, 0)
        |    comm.barrier()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("child (1, 'single')") == 2
    assert done.stdout.count("forked 1 a forked process cannot take part in") == 2
