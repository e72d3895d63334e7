"""Gradients of models on GPUs, in all ways they can take: on a GPU, and on one on the host."""

from __future__ import annotations

import os

import pytest
import torch
from gpu_on_host import gpu_on_host, host_waits  # noqa: F401
from gradients import (
    Odd,
    assert_close,
    assert_same_bits_on_all_ranks,
    inputs_of,
    made,
    ranks_models,
    small,
    step,
)
from started import UNDER_MPI
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.distributed import Bucketizer
from fastseq.training.loop import Trainer

WAYS = ["staged", "cuda-ipc", "nccl", *(["cuda-mpi"] if UNDER_MPI else [])]
NODES = ["staged over nodes", "cuda-ipc over nodes"]  # this machine stands for several

# What takes long is left to `make test-all`, but for a sample.
LATER = [way for way in WAYS + NODES if way not in ("staged", "cuda-ipc")]
SOME = ["staged", "cuda-ipc", *(pytest.param(way, marks=pytest.mark.slow) for way in LATER)]
LONG = [pytest.param(*each, marks=pytest.mark.slow) for each in ((None, 1), (None, 3), ("fp16", 1))]


def ranks_with(world, way, **options):
    """Return a communicator whose gradients on GPUs take this way."""
    if way == "cuda-mpi":
        options["transport"] = "mpi"
    if way in NODES and world.size > 1:
        options |= {"transport": "hierarchy", "ranks_per_node": 2 if world.size > 2 else 1}
    return world.duplicate(gpu_exchange=way.split()[0], **options)


@pytest.fixture(params=WAYS + NODES)
def comm(request, world, gpu_on_host):  # noqa: F811
    gpu_on_host(world.rank if request.param == "nccl" else 0)
    return ranks_with(world, request.param)


@pytest.mark.parametrize(
    "bucket_bytes", [300, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2**20))]
)
@pytest.mark.parametrize(("make", "shape"), [(small, (4, 7)), (Odd, (3, 2, 4, 4))])
def test_all_ways_average(comm, make, shape, bucket_bytes):
    model, inputs = made(make), inputs_of(*shape)
    buckets = Bucketizer(model, comm, norm=True, bucket_bytes=bucket_bytes)
    assert buckets.exchange == (comm.gpu_exchange if comm.size > 1 else buckets.exchange)
    weights = [float(rank + 1) for rank in range(comm.size)]
    for scale in (1.0, 0.5):
        model.zero_grad()
        value = torch.tensor(float(comm.rank), dtype=torch.float32)
        buckets.start(weights[comm.rank], value=value, scale=scale)
        (model(inputs(comm.rank)).square().sum() / scale).backward()
        averaged = buckets.wait()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        assert averaged.norm == pytest.approx(norm, rel=1e-5)
        assert averaged.finite
        assert averaged.weight == sum(weights)
        mean = sum(r * w for r, w in enumerate(weights)) / sum(weights)
        assert averaged.value == pytest.approx(mean)
        assert_close(model, ranks_models(comm, make, inputs, weights))
        assert_same_bits_on_all_ranks(comm, model)


def test_gradients_that_are_not_finite_raise_on_all_ranks(comm):
    model = made(small)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    bad = comm.size - 1
    loss = model(inputs_of(4, 7)(comm.rank)).square().sum()
    (loss * (float("inf") if comm.rank == bad else 1)).backward()
    with pytest.raises(fs.NonFiniteError, match=f"rank {bad}"):
        buckets.wait()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="no update is under way"):
        buckets.wait()
    assert step(comm, model, buckets, inputs_of(4, 7)(comm.rank)).finite


@pytest.mark.parametrize("kept", [False, True])
def test_gradients_may_lie_in_their_places(comm, kept):
    """As with ``zero_grad(set_to_none=False)``, and with gradients that stay over `wait`."""
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    for turn in range(3):
        if turn == 1 and not kept:
            model.zero_grad(set_to_none=False)
        model(inputs(comm.rank)).square().sum().backward()
        buckets.wait()
    assert_same_bits_on_all_ranks(comm, model)
    times = 3 if kept else 2
    wanted = {n: times * g for n, g in ranks_models(comm, small, inputs).items()}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_second_gradients_and_accumulated_ones_count(comm):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    wanted = {n: 2 * g for n, g in ranks_models(comm, small, inputs).items()}
    for accumulate in (True, False, False):
        model.zero_grad()
        with buckets.no_sync() if accumulate else torch.enable_grad():
            model(inputs(comm.rank)).square().sum().backward()
        model(inputs(comm.rank)).square().sum().backward()
        buckets.wait()
        assert_close(model, wanted)


class Conjugated(torch.nn.Module):
    """Autograd gives its parameter a gradient that is conjugated lazily."""

    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))

    def forward(self, x):
        return torch.view_as_real(self.m.mH @ x.to(torch.complex64)).square()


def test_lazily_conjugated_gradients(comm):
    model, inputs = made(Conjugated), inputs_of(3, 3)
    buckets = Bucketizer(model, comm)
    model(inputs(comm.rank)).square().sum().backward()
    assert model.m.grad.is_conj()
    buckets.wait()
    assert_close(model, ranks_models(comm, Conjugated, inputs))


def test_an_error_on_one_rank_ends_the_update_on_all(comm):
    if comm.size == 1:
        return
    model = made(small)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    for _ in range(2):
        model.zero_grad()
        buckets.start()
        if comm.rank == 0:
            model[3:](model[:3](inputs_of(4, 7)(0)).detach()).sum().backward()
            buckets.abandon()
            comm.fail("no data")
        else:
            model(inputs_of(4, 7)(comm.rank)).square().sum().backward()
            with pytest.raises(fs.RemoteError, match="no data"):
                buckets.wait()
    model.zero_grad()
    step(comm, model, buckets, inputs_of(4, 7)(comm.rank))
    assert_close(model, ranks_models(comm, small, inputs_of(4, 7)))


def test_half_the_bytes_on_the_wire(world, gpu_on_host):  # noqa: F811
    for way in WAYS:
        gpu_on_host(world.rank if way == "nccl" else 0)
        comm = ranks_with(world, way, wire_dtype=torch.bfloat16)
        model, inputs = made(small), inputs_of(4, 7)
        step(comm, model, Bucketizer(model, comm), inputs(comm.rank))
        assert_same_bits_on_all_ranks(comm, model)
        for name, grad in ranks_models(comm, small, inputs).items():
            found = model.get_parameter(name).grad
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, grad, rtol=2e-2, atol=2e-2)
        with pytest.raises(ValueError, match="float32"):
            Bucketizer(made(small).double(), comm)


def test_the_way_is_found_and_agreed(world, gpu_on_host):  # noqa: F811
    if world.size == 1:
        return
    gpu_on_host(0)
    assert Bucketizer(made(small), world.duplicate()).exchange == "cuda-ipc"
    with pytest.raises(ValueError, match="ranks share a GPU"):
        Bucketizer(made(small), ranks_with(world, "nccl"))
    with pytest.raises(ValueError, match="does not take memory of GPUs"):
        Bucketizer(made(small), world.duplicate(gpu_exchange="cuda-mpi"))
    gpu_on_host(world.rank)
    assert Bucketizer(made(small), world.duplicate()).exchange == "nccl"
    with pytest.raises(ValueError, match="the ranks want different exchanges"):
        Bucketizer(made(small), ranks_with(world, "auto" if world.rank == 0 else "staged"))


def est_on(comm, amp=None, **options):
    torch.manual_seed(0)
    model = fs.nn.Chain(fs.nn.LSTM(3, 8), torch.nn.Linear(8, 1))
    spec = {"epochs": 3, "batchsize": 4, "seqsize": 5, **options}
    return fs.Estimator(
        model, fs.seqloss(mse_loss), adam, spec, comm=comm, seed=3, progress=False, device="cpu",
        amp=amp,
    )  # fmt: skip


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.fixture
def late(monkeypatch):
    """Read losses as for a GPU."""
    monkeypatch.setattr(Trainer, "_can_read_at_once", lambda self: False)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.05}, {"accumulate": 3}])
def test_fit_is_the_same_as_on_the_host(request, world, comm, late, options):
    x = torch.randn(23, 9, 3, generator=torch.Generator().manual_seed(1))
    y = x.cumsum(0).sum(2, keepdim=True)
    on_gpu = est_on(comm, **options).fit(x, y)
    request.getfixturevalue("monkeypatch").undo()
    on_host = est_on(world.duplicate(), **options).fit(x, y)
    if comm.size > 1:
        assert fs.info(on_gpu)["gradients"] == comm.gpu_exchange
    losses = [[e["loss"] for e in est.history_] for est in (on_gpu, on_host)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(on_gpu.model.parameters(), on_host.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_same_bits_on_all_ranks(comm, on_gpu.model)


@pytest.mark.parametrize("comm", SOME, indirect=True)
@pytest.mark.parametrize(("amp", "accumulate"), [*LONG, ("fp16", 3)])
def test_fit_from_graphs_is_the_same(world, comm, late, monkeypatch, amp, accumulate):
    """A second recording makes the updates, of means that are at the same places each time."""
    from test_cuda_graph import TapeRecorder, TapeTrainer

    x = torch.randn(23, 9, 3, generator=torch.Generator().manual_seed(1))
    y = x.cumsum(0).sum(2, keepdim=True)
    options = {"epochs": 6, "accumulate": accumulate, "clip_norm": 1.0, "amp": amp}
    plain = est_on(comm, **options).fit(x, y)
    monkeypatch.setattr(fs.training.fit, "Trainer", TapeTrainer)
    TapeRecorder.count = 0
    graphed = est_on(comm, **options).fit(x, y)
    assert TapeRecorder.count > 1
    if amp is not None:
        scale = [est._learner.precision.state_dict() for est in (graphed, plain)]
        assert scale[0] == scale[1]
    for a, b in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3 if amp else 1e-5)
    for p in graphed.model.parameters():
        assert torch.equal(comm.broadcast_(p.detach().clone()), p)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_is_reported_late_and_by_all_ranks(comm, late, what):
    x = torch.ones(40, 9, 3)
    if what == "loss":
        x[22, 3] = float("nan")
        expected = "the loss is nan in epoch 1, block 0, chunk 4"
    else:
        expected = "rank 0 has an infinite or NaN gradient"
    est = est_on(comm, batchsize=9, nan="keep")
    if what == "gradient" and comm.rank == 0:
        est.model[1].weight.register_hook(lambda grad: grad * float("inf"))
    if comm.size > 1 or what == "loss":
        with pytest.raises(fs.NonFiniteError, match=expected):
            est.fit(x, x[..., :1])


def test_fit_does_not_wait_for_the_gpu(world, gpu_on_host, late, monkeypatch):  # noqa: F811
    """Except at the end of an epoch, and for every sixteenth update."""
    for way in ("cuda-ipc", "nccl") if world.size > 1 else ():
        gpu_on_host(world.rank if way == "nccl" else 0)
        waits = []
        wait = Bucketizer.wait

        def counted(buckets, wait=wait, waits=waits):
            before = host_waits()
            try:
                return wait(buckets)
            finally:
                waits.append(host_waits() - before - 1)  # one is the stand-in's own

        monkeypatch.setattr(Bucketizer, "wait", counted)
        x = torch.randn(40, 9, 3, generator=torch.Generator().manual_seed(1))
        est_on(ranks_with(world, way), clip_norm=1.0).fit(x, x[..., :1])
        monkeypatch.setattr(Bucketizer, "wait", wait)
        assert len(waits) > 10
        assert set(waits) == {0}


@pytest.mark.parametrize("way", ["staged", "cuda-ipc", "nccl"])
def test_models_on_a_gpu(world, way):
    """All ranks on one GPU, which NCCL has for one rank: both streams see whole gradients."""
    if not torch.cuda.is_available():
        if os.environ.get("FASTSEQ_REQUIRE_CUDA") == "1":
            pytest.fail("FASTSEQ_REQUIRE_CUDA=1, but there is no GPU")
        pytest.skip("needs a GPU")
    on_host, model = made(small), made(small).cuda()
    host_buckets = Bucketizer(on_host, world.duplicate(), bucket_bytes=300)
    if way == "nccl" and world.size > 1:
        with pytest.raises(ValueError, match="ranks share a GPU"):
            Bucketizer(model, ranks_with(world, way))
        return
    buckets = Bucketizer(model, ranks_with(world, way), bucket_bytes=300, norm=True)
    assert buckets.exchange == way
    x = inputs_of(4, 7)(world.rank)
    side = torch.cuda.Stream()
    for _ in range(5):
        step(world, on_host, host_buckets, x)
        model.zero_grad()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # a slow producer, on a stream of its own
            model(x.cuda()).square().sum().backward()
            averaged = buckets.wait()
            found = [p.grad * 1 for p in model.parameters()]
        torch.cuda.current_stream().wait_stream(side)
        for grad, p in zip(found, on_host.parameters(), strict=True):
            torch.testing.assert_close(grad.cpu(), p.grad, rtol=1e-4, atol=1e-5)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in on_host.parameters()]))
        assert averaged.norm == pytest.approx(norm, rel=1e-4)
        assert averaged.finite
