"""Gradients that are averaged where they are, or on their way through the host."""

from __future__ import annotations

import os

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

import fastseq as fs
from fastseq.distributed import Bucketizer, bucketizer


def test_models_on_a_gpu_go_through_the_host(world):
    """All ranks on one GPU: the producer's stream and the consumer's see whole gradients."""
    if not torch.cuda.is_available():
        if os.environ.get("FASTSEQ_REQUIRE_CUDA") == "1":
            pytest.fail("FASTSEQ_REQUIRE_CUDA=1, but there is no GPU")
        pytest.skip("needs a GPU")
    on_host, model = made(small), made(small).cuda()
    host_buckets = Bucketizer(on_host, world, bucket_bytes=300)
    buckets = Bucketizer(model, world.duplicate(), bucket_bytes=300)
    x = inputs_of(4, 7)(world.rank)
    side = torch.cuda.Stream()
    for _ in range(5):
        step(world, on_host, host_buckets, x)
        model.zero_grad()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # a slow producer, on a stream of its own
            model(x.cuda()).square().sum().backward()
            buckets.wait()
            found = [p.grad * 1 for p in model.parameters()]
        torch.cuda.current_stream().wait_stream(side)
        for grad, p in zip(found, on_host.parameters(), strict=True):
            torch.testing.assert_close(grad.cpu(), p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "shape"), [(small, (4, 7)), (Odd, (3, 2, 4, 4))])
def test_a_group_of_torch_distributed_averages_as_the_native_exchange(
    world, monkeypatch, make, shape
):
    """What NCCL does for GPUs, here by gloo on the host."""
    monkeypatch.setattr(bucketizer, "nccl_fits", lambda *_: True)
    monkeypatch.setattr(bucketizer.DeviceExchange, "backend", "ProcessGroupGloo")
    model, inputs = made(make), inputs_of(*shape)
    buckets = Bucketizer(model, world, norm=True)
    weights = [float(rank + 1) for rank in range(world.size)]
    for scale in (1.0, 0.5):
        model.zero_grad()
        buckets.start(weights[world.rank], value=float(world.rank), scale=scale)
        (model(inputs(world.rank)).square().sum() / scale).backward()
        averaged = buckets.wait()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        assert averaged.norm == pytest.approx(norm, rel=1e-5)
        assert averaged.finite
        assert averaged.weight == sum(weights)
        mean = sum(r * w for r, w in enumerate(weights)) / sum(weights)
        assert averaged.value == pytest.approx(mean)
        assert_close(model, ranks_models(world, make, inputs, weights))
        assert_same_bits_on_all_ranks(world, model)
    model.zero_grad()
    loss = model(inputs(world.rank)).square().sum()
    (loss * (float("inf") if world.rank == world.size - 1 else 1)).backward()
    with pytest.raises(fs.NonFiniteError, match=f"rank {world.size - 1}"):
        buckets.wait()
    model.zero_grad()
    with pytest.raises(RuntimeError, match="no update is under way"):
        buckets.wait()


@pytest.mark.parametrize("kept", [False, True])
def test_a_group_takes_gradients_that_lie_in_its_own_memory(world, monkeypatch, kept):
    """As with ``zero_grad(set_to_none=False)``, and with gradients that stay over `wait`."""
    found = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(bucketizer, "nccl_fits", lambda *_: True)
            monkeypatch.setattr(bucketizer.DeviceExchange, "backend", "ProcessGroupGloo")
        model, inputs = made(small), inputs_of(4, 7)
        buckets = Bucketizer(model, world)
        for turn in range(3):
            if turn == 1 and not kept:
                model.zero_grad(set_to_none=False)
            model(inputs(world.rank)).square().sum().backward()
            buckets.wait()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        assert_same_bits_on_all_ranks(world, model)
    times = 3 if kept else 2
    wanted = {n: times * g for n, g in ranks_models(world, small, inputs).items()}
    for grads in found:
        for name, grad in grads.items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-5)
