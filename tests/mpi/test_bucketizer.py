"""Gradients averaged by `Bucketizer`, beside the mean that plain torch computes."""

from __future__ import annotations

import copy
import time

import pytest
import torch
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
from started import MESSAGES
from torch import nn

import fastseq as fs
from fastseq.distributed import Bucketizer


@pytest.fixture(params=["shm", MESSAGES, "hierarchy of 2"], scope="module")
def transport(request):
    return request.param


@pytest.fixture
def comm(transport, world):
    name, _, ranks_per_node = transport.partition(" of ")
    options = {"transport": name, "ranks_per_node": int(ranks_per_node or 0)}
    return world.duplicate(**options)


@pytest.fixture(params=[1, 2], ids=["exchanged in wait", "exchanged by a thread"])
def threads(request, world):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bucket_bytes", [1, 500, 4 << 20])
@pytest.mark.parametrize(("make", "shape"), [(small, (4, 7)), (Odd, (3, 2, 4, 4))])
def test_gradients_are_the_mean(comm, make, shape, bucket_bytes):
    inputs = inputs_of(*shape)
    model = made(make)
    buckets = Bucketizer(model, comm, bucket_bytes=bucket_bytes)
    for _ in range(3):
        averaged = step(comm, model, buckets, inputs(comm.rank))
        assert (averaged.weight, averaged.value, averaged.norm) == (comm.size, 0.0, None)
        assert averaged.finite
        assert not averaged.attention
        assert_close(model, ranks_models(comm, make, inputs))
        assert_same_bits_on_all_ranks(comm, model)


def test_shared_memory_gives_the_same_bits_for_all_bucket_sizes(world):
    found = []
    for bucket_bytes in (1, 3000, 1 << 20):
        model = made(small)
        buckets = Bucketizer(model, world, bucket_bytes=bucket_bytes)
        step(world, model, buckets, inputs_of(4, 7)(world.rank))
        found.append([p.grad.clone() for p in model.parameters()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_move_once_before_the_exchange_and_never_after(world):
    model = made(small)
    buckets = Bucketizer(model, world, bucket_bytes=300)
    ((_, _, memory),) = buckets.host.native.buffers()
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    fresh = []
    for p in model.parameters():
        p.register_hook(lambda grad: fresh.append(grad.data_ptr()))
    step(world, model, buckets, inputs_of(4, 7)(world.rank))
    for p in model.parameters():
        # what the optimizer reads is the memory that the ranks wrote the mean to
        assert start <= p.grad.data_ptr() < start + memoryview(memory).nbytes
    assert world._native.is_shared(memory)
    assert not any(start <= address < start + memoryview(memory).nbytes for address in fresh)


def test_gathered_gradients_are_let_go_while_backward_goes_on(world):
    """Backward never holds all gradients beside their buffer."""
    model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(8)))
    buckets = Bucketizer(model, world, bucket_bytes=1)
    ((_, _, memory),) = buckets.host.native.buffers()
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    end = start + memoryview(memory).nbytes
    held = []

    def count(_):
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        held.append(sum(not start <= grad.data_ptr() < end for grad in grads))

    for p in model.parameters():
        p.register_hook(count)
    step(world, model, buckets, torch.ones(1, 100))
    assert len(held) == 8
    assert max(held) <= 1


def test_weights_and_values(comm):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm)
    weights = [float(rank) for rank in range(1, comm.size)] + [3.0]
    if comm.size > 1:
        weights[0] = 0.0
    buckets.start(weights[comm.rank], value=10.0 * comm.rank)
    if weights[comm.rank]:
        model(inputs(comm.rank)).square().sum().backward()
    averaged = buckets.wait()
    assert averaged.weight == sum(weights)
    mean = sum(10.0 * r * w for r, w in enumerate(weights)) / sum(weights)
    assert averaged.value == pytest.approx(mean)
    assert_close(model, ranks_models(comm, small, inputs, weights))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bucket_bytes", [1, 500, 4 << 20])
@pytest.mark.parametrize(("make", "shape"), [(small, (4, 7)), (Odd, (3, 2, 4, 4))])
def test_norm_of_the_mean(comm, make, shape, bucket_bytes):
    model, inputs = made(make), inputs_of(*shape)
    buckets = Bucketizer(model, comm, bucket_bytes=bucket_bytes, norm=True)
    for _ in range(2):
        averaged = step(comm, model, buckets, inputs(comm.rank))
        grads = [p.grad.double() for p in model.parameters() if p.grad is not None]
        assert averaged.norm == pytest.approx(float(nn.utils.get_total_norm(grads)), rel=1e-12)
        norm = torch.tensor(averaged.norm, dtype=torch.float64)
        assert torch.equal(comm.broadcast_(norm.clone()), norm)  # the same bits


def test_norm_of_the_mean_in_spite_of_late_gradients(comm):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=100, norm=True)
    for _ in range(2):
        model.zero_grad()
        for _ in range(3):
            model(inputs(comm.rank)).square().sum().backward()
        norm = buckets.wait().norm
        grads = [p.grad.double() for p in model.parameters()]
        assert norm == pytest.approx(float(nn.utils.get_total_norm(grads)), rel=1e-6)


def test_ranks_that_want_the_norm_and_ranks_that_do_not(comm):
    if comm.size == 1:
        return
    with pytest.raises(ValueError, match=r"rank 1 has norm=True, rank 0 norm=False"):
        Bucketizer(nn.Linear(3, 3), comm, norm=comm.rank == 1)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scale_of_a_rank_s_gradients(comm, dtype, late):
    model = made(small).to(dtype)
    buckets = Bucketizer(model, comm, bucket_bytes=100)
    x = inputs_of(4, 7)(comm.rank).to(dtype)
    scales = [0.3 * (rank + 1) for rank in range(comm.size)]
    wanted = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for rank in range(comm.size):
        own = made(small).to(dtype)
        own(inputs_of(4, 7)(rank).to(dtype)).square().sum().backward()
        for name, p in own.named_parameters():
            wanted[name] += p.grad * (scales[rank] * (2 if late else 1) / comm.size)
    buckets.start(scale=scales[comm.rank])
    for _ in range(2 if late else 1):
        model(x).square().sum().backward()
    buckets.wait()
    for name, p in model.named_parameters():
        tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(p.grad, wanted[name], rtol=tolerance, atol=tolerance)


def test_attention_of_one_rank_reaches_all_in_the_same_step(comm):
    model = nn.Linear(3, 2)
    buckets = Bucketizer(model, comm)
    heard = []
    for number in range(3):
        buckets.start(attention=number == 1 and comm.rank == comm.size - 1)
        model(torch.ones(1, 3)).sum().backward()
        heard.append(buckets.wait().attention)
    assert heard == [False, True, False]
    buckets.close()


def test_a_step_in_which_no_rank_has_data(comm):
    model = made(small)
    buckets = Bucketizer(model, comm)
    buckets.start(weight=0.0)
    assert buckets.wait().weight == 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_steps_with_either_zero_grad_and_replaced_gradients(comm, set_to_none):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    wanted = ranks_models(comm, small, inputs)
    for turn in range(4):
        model.zero_grad(set_to_none=set_to_none)
        if turn == 2:
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        model(inputs(comm.rank)).square().sum().backward()
        buckets.wait()
        assert_close(model, wanted)


def test_accumulation_without_sync(comm):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=300)
    for _ in range(2):
        model.zero_grad()
        with buckets.no_sync():
            for _ in range(2):
                model(inputs(comm.rank)).square().sum().backward()
        model(inputs(comm.rank)).square().sum().backward()
        buckets.wait()
        wanted = {n: 3 * g for n, g in ranks_models(comm, small, inputs).items()}
        assert_close(model, wanted)


def test_gradients_of_an_accumulation_alone_are_not_lost(comm):
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    buckets = Bucketizer(model, comm)
    x = torch.full((1, 2), comm.rank + 1.0)
    with buckets.no_sync():
        model["a"](x).sum().backward()  # the last backward does not touch a
    model["b"](x).sum().backward()
    buckets.wait()
    mean = (comm.size + 1) / 2
    assert model["a"].weight.grad[0].tolist() == pytest.approx([mean, mean])
    assert model["b"].weight.grad[0].tolist() == pytest.approx([mean, mean])


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_several_backwards_are_summed(comm, bucket_bytes, weighted):
    """The second and third come while the first are on their way; some ranks have none, or less."""
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm, bucket_bytes=bucket_bytes)
    weights = [float(rank + 1) if weighted else 1.0 for rank in range(comm.size)]
    head = model[-1]
    for turn in range(3):
        model.zero_grad()
        buckets.start(weights[comm.rank])
        for _ in range(1 if comm.rank == turn else 3):
            model(inputs(comm.rank)).square().sum().backward()
        head(torch.ones(1, 5)).sum().backward()  # of some parameters alone
        assert buckets.wait().weight == sum(weights)
        wanted = {}
        for rank in range(comm.size):
            own = made(small)
            times = 1 if rank == turn else 3
            (times * own(inputs(rank)).square().sum() + own[-1](torch.ones(1, 5)).sum()).backward()
            for name, p in own.named_parameters():
                part = p.grad * (weights[rank] / sum(weights))
                wanted[name] = wanted.get(name, 0) + part
        assert_close(model, wanted)
        assert_same_bits_on_all_ranks(comm, model)


def test_a_late_gradient_that_is_not_finite(comm):
    model = made(small)
    buckets = Bucketizer(model, comm, bucket_bytes=1)
    model(torch.ones(1, 7)).sum().backward()
    scale = torch.inf if comm.rank == comm.size - 1 else 1
    (model(torch.ones(1, 7)).sum() * scale).backward()
    with pytest.raises(fs.NonFiniteError, match=f"rank {comm.size - 1} has an infinite"):
        buckets.wait()


def test_a_model_of_one_bucket_may_accumulate_freely(comm):
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, comm)
    for _ in range(2):
        model(inputs(comm.rank)).square().sum().backward()
    buckets.wait()
    assert_close(model, {n: 2 * g for n, g in ranks_models(comm, small, inputs).items()})


def test_parameters_unused_on_some_ranks_count_as_zero(comm):
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1), "c": nn.Linear(2, 1)})
    buckets = Bucketizer(model, comm, bucket_bytes=4)
    out = model["a"](torch.ones(1, 2))
    if comm.rank == comm.size - 1:
        out = out + model["b"](torch.ones(1, 2))
    out.sum().backward()
    buckets.wait()
    assert model["a"].bias.grad.item() == pytest.approx(1)
    assert model["b"].bias.grad.item() == pytest.approx(1 / comm.size)
    assert model["c"].bias.grad is None
    buckets.close()
    model.zero_grad()
    strict = Bucketizer(model, comm, unused="error")
    model["a"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"no gradient on any rank: b.weight, b.bias, c.weight"):
        strict.wait()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_non_finite_gradients(comm, dtype, bad):
    failing = comm.size - 1
    for policy in ("raise", "skip", "ignore"):
        model = nn.Linear(600, 3).to(dtype)
        buckets = Bucketizer(model, comm, nonfinite=policy)
        x = torch.ones(1, 600, dtype=dtype)
        if comm.rank == failing:
            x[0, 77] = bad
        model(x).sum().backward()
        if policy == "raise":
            with pytest.raises(fs.NonFiniteError, match=f"rank {failing} has an infinite or NaN"):
                buckets.wait()
        else:
            assert buckets.wait().finite is False
        x[0, 77] = 1
        model.zero_grad()
        model(x).sum().backward()
        assert buckets.wait().finite


def test_mixed_dtypes(comm):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4).double(), nn.Linear(4, 2).bfloat16())
    buckets = Bucketizer(model, comm, bucket_bytes=8)
    x = torch.full((2, 3), comm.rank + 1.0)
    hidden = model[1](model[0](x).double())
    outputs = model[2](hidden.bfloat16()).float().sum()
    mine = torch.autograd.grad(outputs, list(model.parameters()), retain_graph=True)
    outputs.backward()
    buckets.wait()
    exact = [torch.stack([comm.broadcast_(g.clone(), r) for r in range(comm.size)]) for g in mine]
    for p, all_ranks in zip(model.parameters(), exact, strict=True):
        mean = all_ranks.double().mean(0)
        tolerance = 2e-2 if p.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(p.grad.double(), mean, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("threads")
def test_two_reducers_at_once_and_the_user_s_own_traffic(mpi, comm):
    first, second = made(small), made(small)
    other = comm.duplicate()
    a = Bucketizer(first, comm, bucket_bytes=200)
    b = Bucketizer(second, other, bucket_bytes=200)
    inputs = inputs_of(4, 7)
    total = []

    def traffic(grad):
        total.append(mpi.COMM_WORLD.allreduce(1))
        return grad

    for _ in range(5):
        first.zero_grad()
        second.zero_grad()
        hidden = first(inputs(comm.rank))
        hidden.register_hook(traffic)
        (hidden.square().sum() + second(inputs(comm.rank)).square().sum()).backward()
        a.wait()
        b.wait()
    wanted = ranks_models(comm, small, inputs)
    assert_close(first, wanted)
    assert_close(second, wanted)
    assert total == [comm.size] * 5


def test_the_communicator_is_the_reducer_s_until_wait(comm):
    model = made(small)
    buckets = Bucketizer(model, comm, bucket_bytes=100)
    model(torch.ones(1, 7)).sum().backward()
    with pytest.raises(RuntimeError, match="in use by a Bucketizer's update"):
        comm.barrier()
    buckets.wait()
    comm.barrier()


@pytest.mark.usefixtures("threads")
def test_random_haste(world):
    """Ranks that are early or late by chance: the same results as in step."""
    model, inputs = made(small), inputs_of(4, 7)
    buckets = Bucketizer(model, world, bucket_bytes=64)
    wanted = ranks_models(world, small, inputs)
    random = torch.Generator().manual_seed(world.rank)
    for _ in range(60):
        model.zero_grad()
        time.sleep(0.003 * float(torch.rand(1, generator=random)))
        model(inputs(world.rank)).square().sum().backward()
        time.sleep(0.003 * float(torch.rand(1, generator=random)))
        buckets.wait()
        assert_close(model, wanted)


def test_parameters_are_those_of_rank_0(comm):
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].running_mean += comm.rank
    Bucketizer(model, comm)
    for tensor in model.state_dict().values():
        assert torch.equal(comm.broadcast_(tensor.clone()), tensor)


def test_models_that_differ_are_refused(comm):
    if comm.size == 1:
        return
    model = nn.Linear(3, 4 if comm.rank == 1 else 3)
    with pytest.raises(ValueError, match=r"rank 1 has weight \(4, 3\) .* rank 0 weight \(3, 3\)"):
        Bucketizer(model, comm)
    with pytest.raises(ValueError, match=r"rank 1 has buckets of 9 bytes, rank 0 buckets of 8"):
        Bucketizer(nn.Linear(3, 3), comm, bucket_bytes=9 if comm.rank == 1 else 8)


def test_bad_arguments(comm):
    model = nn.Linear(1, 1)
    for options in ({"nonfinite": "warn"}, {"unused": "zero"}, {"bucket_bytes": 0}):
        with pytest.raises(ValueError, match="must be"):
            Bucketizer(model, comm, **options)
    with pytest.raises(ValueError, match="no trainable parameters"):
        Bucketizer(nn.Tanh(), comm)
    with pytest.raises(RuntimeError, match="no update is under way"):
        Bucketizer(model, comm).wait()
    sparse = nn.Embedding(3, 2, sparse=True)
    buckets = Bucketizer(sparse, comm)
    with pytest.raises(TypeError, match=r"gradient of weight is torch.sparse_coo"):
        sparse(torch.tensor([1])).sum().backward()
        buckets.wait()
    comm.barrier()


def test_close_gives_the_model_back(comm):
    model = made(small)
    buckets = Bucketizer(model, comm)
    x = inputs_of(4, 7)(comm.rank)
    step(comm, model, buckets, x)
    before = [p.grad.clone() for p in model.parameters()]
    buckets.close()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    model.zero_grad()
    model(x).square().sum().backward()  # nobody listens
    copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="no update is under way"):
        buckets.wait()


def test_clipping_after_averaging_is_each_rank_s_own(comm):
    model = made(small)
    buckets = Bucketizer(model, comm)
    step(comm, model, buckets, inputs_of(4, 7)(comm.rank))
    before = [p.grad.clone() for p in model.parameters()]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    comm.barrier()
    for p, g in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, g * (0.5 / (norm + 1e-6)))
    assert_same_bits_on_all_ranks(comm, model)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_none_are_refused(comm, weight):
    buckets = fs.distributed.Bucketizer(torch.nn.Linear(2, 1), comm)
    with pytest.raises(ValueError, match="weight must be a finite number that is not negative"):
        buckets.start(weight)
    buckets.start(1.0)
    buckets.abandon()
