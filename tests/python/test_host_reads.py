"""What `fit` reads on the host on a GPU, where reading waits; counted on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode

import fastseq as fs
from fastseq._util.seeding import untouched
from fastseq.data.chunk_plan import Chunk
from fastseq.data.sequences import Batch, to_device
from fastseq.nn.lengths import beside
from fastseq.training.evaluation import evaluate
from fastseq.training.loop import Trainer, chunk_weight


def adamw(params):
    return optim.AdamW(params, lr=1e-2)  # fastseq takes the fused kernel


class Reads(TorchDispatchMode):
    """Counts numbers that are read from tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.1}, {"clip_value": 0.1}, {"accumulate": 2}]
)
@pytest.mark.parametrize("amp", [None, "fp16"])
def test_updates_read_nothing_but_every_sixteenth(monkeypatch, options, amp):
    reads = []
    train_on = Trainer._train_on

    def counted(trainer, chunk, batch):
        with Reads() as mode:
            attention = train_on(trainer, chunk, batch)
        reads.append(mode.count)
        return attention

    monkeypatch.setattr(fs.training.fit, "_trainer_for", lambda learner: Trainer)  # as on a GPU
    monkeypatch.setattr(Trainer, "_can_read_at_once", lambda trainer: False)
    monkeypatch.setattr(Trainer, "_train_on", counted)
    monkeypatch.setattr(fs.training.loop, "sum_of_squares", lambda grads: None)
    x = torch.randn(40, 4, 3)
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.LSTM(3, 5), nn.Linear(5, 1))
    spec = {"epochs": 2, "batchsize": 4, "seqsize": 2, **options}
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), adamw, spec, amp=amp, comm=None, device="cpu", progress=False
    )
    est.fit(x, x[..., :1])
    first, second = [0] * 20, [0] * 20
    if "accumulate" in options:  # there are ten updates, whose losses are read at the epoch's end
        first[1] = 1
    else:  # the first loss of all is read at once
        first[0], first[16], second[15] = 1, 16, 16
    assert reads == first + second


def test_weights_of_chunks_are_summed_on_the_host():
    """Reading a tensor of the device "meta" is an error; on a GPU it would wait."""
    there = torch.device("meta")
    chunk = Chunk(0, 0, 0, 5, 0, 3)
    w = torch.rand(5, 3)
    batch = Batch(torch.zeros(5, 3, 2), torch.zeros(5, 3, 1), w)
    moved = to_device(to_device(batch, there), there)
    assert moved.ws.is_meta
    assert chunk_weight(chunk, moved) == chunk_weight(chunk, batch)
    each = Batch(batch.xs, {"a": batch.ys}, {"a": w.unsqueeze(-1)})
    assert chunk_weight(chunk, to_device(each, there)) == pytest.approx(float(w.sum()))


def test_models_that_would_see_padding_run_on_each_length_without_reading_it():
    class Convolved(nn.Conv1d):
        def forward(self, x):
            return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)

    m = fs.Stateful(Convolved(3, 2, 3, padding="same", device="meta"))
    m.lengths = beside(torch.zeros(4, dtype=torch.int64, device="meta"), torch.tensor([7, 0, 4, 9]))
    assert m(torch.zeros(7, 4, 3, device="meta")).shape == (7, 4, 2)


def test_evaluation_does_not_read_each_loss():
    model = nn.Linear(3, 1)
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), adamw, {"epochs": 1, "batchsize": 4, "seqsize": 2},
        comm=None, device="cpu", progress=False,
    )  # fmt: skip
    x = torch.randn(40, 4, 3)
    data = est._learner.open(x, x[..., :1])
    chunks = [Chunk(0, i, 2 * i, 2 * i + 2, 0, 4) for i in range(20)]
    with Reads() as mode:
        loss = evaluate(model, est.loss, data, chunks, est.device, est._learner.replicas)
    assert mode.count < 5  # the others look at data
    assert loss == pytest.approx(mse_loss(model(x), x[..., :1]).item(), rel=1e-5)


def test_random_numbers_are_restored_without_other_gpus(monkeypatch):
    """By default torch's function looks at all of them, and so starts CUDA there."""

    def fail(*_):
        raise AssertionError("another GPU is used")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", fail)
    before = torch.get_rng_state()
    with untouched(torch.device("cpu")):
        torch.rand(1)
    assert torch.equal(before, torch.get_rng_state())
