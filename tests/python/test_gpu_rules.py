"""What holds on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import contextlib
import copy
import sys

import pytest
import torch
from models import adamw, assert_same_parameters, chain
from torch import nn, optim
from torch._subclasses import FakeTensorMode
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_padded_sequence

import fastseq as fs
from fastseq.data.sequences import Batch
from fastseq.nn import recurrent
from fastseq.nn.lengths import beside, on_host
from fastseq.nn.ops import library as native
from fastseq.nn.recurrent_arguments import checked_lengths
from fastseq.training.argument_checks import use_device
from fastseq.training.loop import to_device

KINDS = ["LSTM", "GRU", "RNN"]


@pytest.fixture
def by_torch(monkeypatch):
    """PyTorch's layers run, and take contiguous states only, as with cuDNN."""
    monkeypatch.setattr(recurrent, "_why_torch", lambda *_: "as on a GPU")
    for name in KINDS:
        kind = getattr(nn, name)

        def forward(self, x, hx=None, plain=kind.forward):
            for s in hx if isinstance(hx, tuple) else [] if hx is None else [hx]:
                assert s.is_contiguous()
            return plain(self, x, hx)

        monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_states_are_contiguous(name, packed):
    layer = getattr(fs.nn, name)(3, 4, num_layers=2, trainable_state=True)
    for parameter in layer._state_names:
        nn.init.normal_(getattr(layer, parameter))
    x = torch.randn(5, 2, 3)
    given = pack_padded_sequence(x, torch.tensor([5, 5])) if packed else x
    y, _ = layer(given)
    plain = getattr(nn, name)(3, 4, num_layers=2)
    plain.load_state_dict(layer.state_dict(), strict=False)
    hx = tuple(getattr(layer, n).repeat(1, 2, 1) for n in layer._state_names)
    wanted, _ = plain(given, hx if len(hx) == 2 else hx[0])
    torch.testing.assert_close(y.data if packed else y, wanted.data if packed else wanted)
    if not packed:
        transposed = torch.randn(2, 2, 4).transpose(0, 1)
        layer(x, (transposed, transposed) if name == "LSTM" else transposed)


@pytest.mark.parametrize("name", KINDS)
def test_lengths_are_not_read_from_the_device(name, monkeypatch):
    """Reading a tensor of the device "meta" is an error; on a GPU it would wait."""
    ends = torch.tensor([7, 2, 0])
    batch = Batch(torch.zeros(5, 3, 2), torch.zeros(5, 3, 1), torch.ones(5, 3), ends)
    moved = to_device(batch, torch.device("meta"))
    assert moved.lengths.is_meta
    seen = []

    def pack(_, lengths, **__):
        seen.append(lengths)
        raise InterruptedError

    monkeypatch.setattr(recurrent, "pack_padded_sequence", pack)
    m = fs.Stateful(fs.nn.Chain(getattr(fs.nn, name)(2, 4, device="meta")))
    m.lengths = moved.lengths
    with pytest.raises(InterruptedError):
        m(moved.xs)
    assert seen[0].tolist() == [5, 2, 1]  # what has ended runs for a step, which is undone
    assert on_host(m.lengths).tolist() == [2, -3, -5]


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors have no values, and may be on a GPU that does not exist."""
    monkeypatch.setattr(recurrent._ops, "gpu_obstacle", lambda index: "")
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode():
        yield


def layer_there(name, *args, **options):
    """Return a layer on that GPU; values for its weights could not be drawn."""
    layer = getattr(fs.nn, name)(*args, **options, device="meta")
    for own, parameter in layer.named_parameters():
        setattr(layer, own, nn.Parameter(torch.empty_like(parameter, device="cuda")))
    return layer


RULE = [
    (torch.float32, 4, False, "cuDNN is for what has no lengths"),
    (torch.float32, 4, True, None),
    (torch.float16, 4, True, None),
    (torch.float64, 4, False, None),
    (torch.float64, 128, True, None),
    (torch.float64, 129, True, "more than 128 hidden units on a GPU"),
]


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("name", KINDS)
def test_which_layers_run_by_kernels_on_a_gpu(name, monkeypatch):
    for dtype, hidden, lengths, reason in RULE:
        layer = layer_there(name, 3, hidden, 2, dtype=dtype)
        x = torch.zeros(5, 2, 3, dtype=dtype, device="cuda")
        assert recurrent._why_torch(layer, x, lengths) == reason
        without = recurrent._why_torch(layer, x)
        told = "fastseq" if without is None else f"torch: {without}"
        assert recurrent.kernels(layer)[""] == told
        with monkeypatch.context() as missing:
            missing.setattr(recurrent._ops, "gpu_obstacle", lambda index: "not built")
            assert recurrent._why_torch(layer, x, lengths).startswith("no kernels for this GPU: ")


@pytest.mark.usefixtures("fake_gpu")
def test_which_models_keep_lengths_on_the_gpu(monkeypatch):
    class Own(nn.Linear):
        def forward(self, x, lengths=None):
            return super().forward(x if lengths is None else x * 1)

    small, large = layer_there("LSTM", 3, 4), layer_there("LSTM", 3, 129)
    keeps = recurrent.keeps_lengths_on_device
    assert keeps(fs.nn.Chain(small, fs.nn.Pool("mean")))
    assert keeps(fs.nn.Chain(nn.LSTM(3, 4, device="meta"), nn.Linear(4, 1, device="meta")))
    assert not keeps(fs.nn.Chain(small, large))
    assert not keeps(fs.nn.Chain(small, Own(4, 1, device="meta")))  # nobody knows
    monkeypatch.setattr(recurrent._ops, "gpu_obstacle", lambda index: "not built")
    assert not keeps(small)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_lengths_of_kernels_stay_on_the_gpu(name, dtype):
    """Reading a tensor that has no values is an error; on a GPU it would wait."""
    layer = layer_there(name, 3, 5, dtype=dtype, trainable_state=True)
    x = torch.zeros(7, 2, 3, dtype=dtype, device="cuda")
    lengths = torch.zeros(2, dtype=torch.int32, device="cuda")
    with torch.no_grad():
        y, state = layer(x, lengths=lengths)
    assert (y.shape, y.dtype, y.device.type) == ((7, 2, 5), dtype, "cuda")
    h = state[0] if name == "LSTM" else state
    assert (h.shape, h.dtype) == ((1, 2, 5), dtype)


@pytest.mark.usefixtures("fake_gpu")
def test_what_kernels_keep_on_a_gpu():
    for dtype, kept in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        x, w_ih, w_hh, state = (
            torch.zeros(shape, dtype=dtype, device="cuda")
            for shape in ((7, 2, 3), (20, 3), (20, 5), (1, 2, 5))
        )
        call = torch.ops.fastseq.lstm
        *_, saved = call(x, w_ih, w_hh, None, None, state, state, None, False, True)
        assert (saved.shape, saved.dtype) == ((7 * 2 * 5 * 5,), kept)


@pytest.mark.parametrize("host", [[5, 9], [-1, 2]])
def test_lengths_that_are_known_on_the_host_are_checked(host):
    x, lengths = torch.zeros(7, 2, 3, device="meta"), torch.zeros(2, device="meta").int()
    assert checked_lengths(lengths, x, may_wait=False).dtype == torch.int64
    with pytest.raises(ValueError, match="lengths must be between 0 and 7"):
        checked_lengths(beside(lengths, torch.tensor(host)), x, may_wait=False)


def test_ranks_use_their_own_gpu(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    use_device(torch.device("cuda", 1), alone=True)
    use_device(torch.device("cpu"), alone=False)
    assert not used
    use_device(torch.device("cuda", 1), alone=False)
    assert used == [torch.device("cuda", 1)]


@pytest.mark.parametrize("built", [True, False])
def test_kernels_that_cannot_be_loaded_are_told(monkeypatch, built):
    monkeypatch.delattr(fs, "_cuda", raising=False)
    monkeypatch.setitem(
        sys.modules, "fastseq._cuda", None
    )  # importing it fails, where it is built too
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native, "find_spec", lambda _: "found" if built else None)
    if built:
        with pytest.warns(RuntimeWarning, match="CUDA kernels are built, but cannot be loaded: "):
            found = native.load_cuda()
        assert found.startswith("built, but cannot be loaded: ")
    else:
        assert native.load_cuda() == "not built"
    monkeypatch.setattr(fs, "_cuda", None, raising=False)
    assert native.load_cuda() is None or not built


@pytest.mark.parametrize("words", ["", "no image; build it"])
def test_a_gpu_that_kernels_are_not_built_for_is_told(monkeypatch, words):
    asked = []

    class Kernels:
        @staticmethod
        def obstacle() -> str:
            asked.append(1)
            return words

    monkeypatch.setattr(fs, "_cuda", Kernels, raising=False)
    monkeypatch.setattr(native, "cuda_obstacle", None)
    monkeypatch.setattr(native, "_obstacles", {})
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "an old one")
    told = pytest.warns(
        RuntimeWarning, match=r"cannot run on GPU 3 \(an old one\): no image; build it"
    )
    with told if words else contextlib.nullcontext():
        assert native.gpu_obstacle(3) == words
    assert native.gpu_obstacle(3) == words  # not asked, nor told, again
    assert len(asked) == 1
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: x - 1 if native.gpu_obstacle(3) else x, fullgraph=True, backend="eager"
    )
    assert compiled(torch.ones(2)).tolist() == ([0, 0] if words else [1, 1])


def test_the_compiler_takes_that_for_a_constant():
    """It is marked as the public function marks, which imports the compiler."""
    public = torch.compiler.assume_constant_result(lambda index: "")
    assert vars(native.gpu_obstacle) == vars(public) != {}


def test_info_tells_why_there_are_no_kernels():
    if not torch.cuda.is_available():
        assert fs.info()["kernels"]["cuda"] == "no: there is no GPU"


X = torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(1))
Y = X.mean(2, keepdim=True)
SPEC = {"epochs": 1, "batchsize": 3, "seqsize": 5}


def estimator(model, **options):
    return fs.Estimator(
        model, fs.seqloss(mse_loss), adamw, SPEC, device="cpu", progress=False, **options
    )


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.SGD])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_dtype_between_fits(optimizer, dtype):
    """As in a loop whose optimizer is loaded again, which converts what it keeps."""
    options = {"lr": 0.01, **({"momentum": 0.9} if optimizer is optim.SGD else {})}
    model = chain()
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), lambda ps: optimizer(ps, **options), SPEC, progress=False
    )
    est.fit(X, Y)
    plain = copy.deepcopy(model).to(dtype)
    wanted = optimizer(plain.parameters(), **options)
    wanted.load_state_dict(copy.deepcopy(est.optimizer.state_dict()))
    model.to(dtype)
    est.fit(X, Y)
    for n in (0, 3):
        state = None
        for t in range(0, 20, 5):
            wanted.zero_grad()
            y, state = plain(X[t : t + 5, n : n + 3].to(dtype), state)
            state = tuple(s and tuple(a.detach() for a in s) for s in state)
            mse_loss(y, Y[t : t + 5, n : n + 3].to(dtype)).backward()
            wanted.step()
    assert_same_parameters(model, plain, rtol=1e-9 if dtype == torch.float64 else 0.02)
    assert est.predict(X).shape == (20, 6, 1)


def test_a_model_that_was_moved_away_is_an_error():
    model = chain()
    est = estimator(model).fit(X, Y)
    model[1].to("meta")
    for call in (lambda: est.fit(X, Y), lambda: est.predict(X), lambda: est.evaluate(X, Y)):
        with pytest.raises(ValueError, match=r"1\.weight is on meta, but the .* on cpu"):
            call()


def test_mixed_precision_of_a_model_that_became_double():
    model = fs.nn.Chain(fs.nn.LSTM(3, 4), nn.Linear(4, 1))  # torch's need a processor with bf16
    est = estimator(model, amp="bf16").fit(X, Y)
    model.double()
    with pytest.raises(ValueError, match="amp='bf16' needs a model in float32"):
        est.fit(X, Y)
