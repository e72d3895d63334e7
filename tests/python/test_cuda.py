"""The operators and the estimator on a GPU, against the same on the CPU."""

from __future__ import annotations

import copy
import os

import interrupted
import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.nn import ops
from fastseq.nn.ops import pack, pack_checked, unpack

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        if os.environ.get("FASTSEQ_REQUIRE_CUDA") == "1":
            pytest.fail("FASTSEQ_REQUIRE_CUDA=1, but PyTorch sees no GPU")
        pytest.skip("needs a GPU")
    assert ops.cuda_kernels, "there is a GPU, but fastseq was built without its CUDA kernels"


@pytest.mark.parametrize("to", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [1, 64])
def test_pack_checked(dtype, to, alignment):
    numels = [0, 1, 3, 4096, 4097, 1_000_003, *range(200, 420)]
    tensors = [torch.randn(n).to(dtype) for n in numels]
    on_gpu = [t.cuda() for t in tensors]
    expected, facts = pack_checked(tensors, alignment, 0.5, to)
    flat, found = pack_checked(on_gpu, alignment, 0.5, to)
    assert torch.equal(flat.cpu(), expected)
    torch.testing.assert_close(found.cpu(), facts, rtol=1e-5, atol=0)
    assert torch.equal(pack_checked(on_gpu, alignment, 0.5, to)[1], found)  # the same bits
    for bad in (float("inf"), float("nan")):
        on_gpu[5][1_000_002] = bad
        assert pack_checked(on_gpu, alignment, 0.5, to)[1][0] == 0


def test_bucketizer_of_a_model_on_the_gpu():
    model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.Linear(200, 1)).cuda()
    buckets = fs.distributed.Bucketizer(model, None, bucket_bytes=1000)
    x = torch.randn(5, 300, device="cuda")
    for _ in range(3):
        model.zero_grad()
        (model(x) ** 2).sum().backward()
        wanted = [p.grad.clone() for p in model.parameters()]
        assert buckets.wait().finite
        for p, grad in zip(model.parameters(), wanted, strict=True):
            assert p.grad.is_cuda
            assert torch.equal(p.grad, grad)
    buckets.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [1, 64])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_pack_and_unpack(dtype, alignment, scale):
    numels = [0, 1, 3, 16, 64, 65, 1000, 1_000_003, *range(200, 420)]
    tensors = [torch.randn(n + 1).to(dtype)[i % 2 :][:n] for i, n in enumerate(numels)]
    on_gpu = [t.cuda() for t in tensors]
    odd = torch.randn(100_001, dtype=torch.float32).to(dtype).cuda()
    on_gpu.append(odd[1:])  # not aligned to 16 bytes
    tensors.append(odd[1:].cpu())
    expected = pack(tensors, alignment, scale)
    flat = pack(on_gpu, alignment, scale)
    assert torch.equal(flat.cpu(), expected)
    lengths = [t.numel() for t in tensors]
    for got, want in zip(
        unpack(flat, lengths, alignment, scale),
        unpack(expected, lengths, alignment, scale),
        strict=True,
    ):
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 0, 2, 2), (3, 2, 0, 2), (1, 1, 1, 1), (70_001, 4, 4, 4), (999, 16, 16, 16), (99, 1, 16, 1),
     (7, 3, 5, 7), (5, 17, 40, 33), (66_000, 1, 17, 1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("transposed", [False, True])
def test_bmm(dtype, shape, transposed):
    batch, m, k, n = shape
    a = torch.randint(-4, 5, (batch, k, m) if transposed else (batch, m, k)).to(dtype)
    b = torch.randint(-4, 5, (batch, n, k) if transposed else (batch, k, n)).to(dtype)
    if transposed:
        a, b = a.mT, b.mT
    got = torch.ops.fastseq.bmm(a.cuda(), b.cuda())
    assert torch.equal(got.cpu(), torch.ops.fastseq.bmm(a, b))


def test_works_in_the_current_stream():
    a, b = torch.randn(50_000, 8, 8, device="cuda"), torch.randn(50_000, 8, 8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        a.mul_(2)
        product = torch.ops.fastseq.bmm(a, b)
        flat = pack([product, a])
    stream.synchronize()
    torch.testing.assert_close(flat[: product.numel()].view_as(product), a @ b)


def test_gradients():
    a = torch.randn(9, 3, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    b = torch.randn(9, 2, 4, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(torch.ops.fastseq.bmm, (a, b))
    assert torch.autograd.gradgradcheck(torch.ops.fastseq.bmm, (a, b))


def test_training_as_on_the_cpu():
    x = torch.randn(40, 10, 3)
    y = x.mean(2, keepdim=True)
    model = chain().double()
    spec = fs.Spec(2, 3, 7)
    on_gpu = fs.Estimator(copy.deepcopy(model), fs.seqloss(mse_loss), adamw, spec, progress=False)
    assert on_gpu.device.type == "cuda"
    on_cpu = fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, device="cpu", progress=False)
    on_gpu.fit(x, y)
    on_cpu.fit(x, y)
    assert_same_parameters(on_gpu.model.cpu(), on_cpu.model, rtol=1e-8)
    y[30, 9] = torch.nan
    message = "in epoch 1, block 3, chunk 4"
    fresh = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, spec, progress=False)
    with pytest.raises(fs.NonFiniteError, match=message):
        fresh.fit(x, y)


@pytest.mark.parametrize("optimizer", [adamw, torch.optim.SGD, torch.optim.Adagrad])
def test_steps_from_graphs_as_without(optimizer):
    x = torch.randn(47, 10, 3)
    y = x.mean(2, keepdim=True)
    y[5:10] = torch.nan  # a chunk that a mask leaves out
    mask = ~y.isnan()
    model = chain().double()
    spec = {"epochs": 4, "batchsize": 4, "seqsize": 5, "clip_norm": 0.5, "shuffle": True}
    trained = []
    for flag in (True, False):
        est = fs.Estimator(
            copy.deepcopy(model), fs.seqloss(mse_loss), optimizer, spec, compile=flag, seed=1,
            progress=False,
        )  # fmt: skip
        est.fit(x, y, mask=mask)
        est.optimizer.param_groups[0]["lr"] = 3e-3
        est.fit(x, y, mask=mask, epochs=2)
        trained.append(est)
    assert_same_parameters(trained[0].model, trained[1].model, rtol=1e-7)
    for a, b in zip(trained[0].history_, trained[1].history_, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-7)
    state = trained[0].predict(x[:, :, :]), trained[1].predict(x)
    torch.testing.assert_close(*map(torch.from_numpy, state), rtol=1e-6, atol=1e-8)


def test_dropout_differs_from_replay_to_replay():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 1, bias=False))
    x = torch.ones(40, 5, 4)
    seen = []
    spec = {"epochs": 20, "batchsize": 5, "seqsize": 40}
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=1e-9), spec, compile=True,
        seed=1, progress=False,
    ).fit(x, x[..., :1])  # fmt: skip
    seen = [row["loss"] for row in est.history_]
    assert len({round(loss, 6) for loss in seen}) > 15


def test_a_step_that_reads_a_value_cannot_be_captured():
    def loss(m, xs, ys):
        value = mse_loss(m(xs), ys)
        return value if float(value.detach()) > 0 else 2 * value

    x = torch.randn(60, 4, 3)
    est = fs.Estimator(
        chain(), loss, adamw, fs.Spec(2, 4, 5), compile=True, progress=False
    )  # fmt: skip
    with pytest.raises(ValueError, match="compile=True needs"):
        est.fit(x, x[..., :1])
    torch.cuda.synchronize()  # the device still works
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, fs.Spec(1, 4, 5), progress=False)
    est.fit(x, x[..., :1])


def test_what_was_trained_on_a_gpu_is_loaded_without_one(tmp_path):
    x = torch.randn(40, 4, 3)
    spec = {"epochs": 2, "batchsize": 2, "seqsize": 10, "scale_x": "standard"}
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), adamw, spec, device="cuda", progress=False)
    est.fit(x, x[..., :1]).predict(x[:30])
    est.save(tmp_path / "model", state=True)
    loaded = fs.Estimator.load(tmp_path / "model", device="cpu", progress=False)
    for (name, a), b in zip(
        loaded.model.state_dict().items(), est.model.state_dict().values(), strict=True
    ):
        assert a.device.type == "cpu"
        assert torch.equal(a, b.cpu()), name
    torch.testing.assert_close(loaded.step(x[30]), est.step(x[30]).cpu(), rtol=1e-4, atol=1e-5)
    est.save(tmp_path / "model", state=True)
    there = fs.Estimator.load(tmp_path / "model", device="cuda", progress=False)
    assert torch.equal(there.step(x[31]), est.step(x[31]))


@pytest.mark.parametrize(("begins", "ends"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_runs_go_on_on_another_device(tmp_path, begins, ends):
    def fit(device, **options):
        est = interrupted.estimator(device=device, model=interrupted.chain(dropout=0.0))
        return est.fit(*interrupted.data(), **options)

    whole = fit("cpu")
    checkpoint = fs.callbacks.Checkpoint(tmp_path, every_updates=7, keep=100)
    fit(begins, checkpoint=checkpoint)
    path = tmp_path / interrupted.files(tmp_path)[3]  # in the second epoch
    if begins == ends:
        est = fit(ends, resume=path)
    else:
        with pytest.warns(UserWarning, match=f"with device {begins}, this one has device {ends}"):
            est = fit(ends, resume=path)
    assert_same_parameters(est.model.cpu(), whole.model, rtol=1e-2)
    assert [row["epoch"] for row in est.history_] == [1, 2, 3]


def test_random_kernels():
    layer = fs.nn.RandomKernels(3, 60, groups=4)
    x, lengths = torch.randn(70, 5, 3), torch.tensor([70, 60, 9, 1, 33])
    layer(x, lengths)
    expected = layer.eval()(x, lengths)
    found = layer.cuda()(x.cuda(), lengths.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)
    fresh = fs.nn.RandomKernels(3, 60, groups=4).cuda()
    fresh(x.cuda(), lengths.cuda())
    torch.testing.assert_close(fresh.thresholds, layer.thresholds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("hidden", [7, 50, 128])
@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 0.2)],
    ids=str,
)
def test_recurrent_layers_with_lengths(name, hidden, dtype, atol):
    layer = getattr(fs.nn, name)(3, hidden, 2, bidirectional=True, trainable_state=True).to(dtype)
    on_gpu = copy.deepcopy(layer).cuda()
    x, lengths = torch.randn(9, 5, 3, dtype=dtype), torch.tensor([9, 0, 3, 8, 1])
    there = x.cuda().requires_grad_()
    with torch.profiler.profile() as profile:
        y, state = on_gpu(there, lengths=lengths.cuda())
    assert any("recurrence_forward" in event.name for event in profile.events())
    wanted, wanted_state = layer(x.requires_grad_(), lengths=lengths)
    torch.testing.assert_close(y.cpu(), wanted, rtol=0, atol=atol)
    for a, b in zip(torch.stack([*state]).cpu(), torch.stack([*wanted_state]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
    ours = torch.autograd.grad(y.sum(), [there, *on_gpu.parameters()], allow_unused=True)
    theirs = torch.autograd.grad(wanted.sum(), [x, *layer.parameters()], allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=atol, atol=10 * atol)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_derivatives_of_recurrent_layers(name):
    layer = getattr(fs.nn, name)(2, 3, dtype=torch.float64, device="cuda")
    x = torch.randn(4, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    lengths = torch.tensor([4, 2], device="cuda")
    assert torch.autograd.gradcheck(lambda x: layer(x, lengths=lengths)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x, lengths=lengths)[0], (x,))


def test_lengths_are_not_awaited():
    layer = fs.nn.LSTM(3, 4, device="cuda")
    x, lengths = torch.randn(5, 2, 3, device="cuda"), torch.tensor([5, 9], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, (h, _) = layer(x, lengths=lengths)
        h.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert h.isnan().any(2).tolist() == [[False, True]]


def test_recurrent_kernels_under_autocast():
    layer = fs.nn.GRU(3, 4, device="cuda")
    x, lengths = torch.randn(5, 2, 3, device="cuda"), torch.tensor([5, 2], device="cuda")
    wanted, _ = layer(x, lengths=lengths)
    with torch.autocast("cuda", torch.bfloat16):
        found, _ = layer(x, lengths=lengths)
        of_half, _ = layer(x.bfloat16(), lengths=lengths)
    assert torch.equal(found, wanted)
    assert of_half.dtype == torch.float32
