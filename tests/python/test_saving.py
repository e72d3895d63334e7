"""Estimators in files: what comes back gives the same bits; what is no such file is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Custom, TwoInputs, adamw, chain
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fastseq as fs
from fastseq.checkpoint.files import Image, read, write
from fastseq.checkpoint.packing import pack, unpack

T, N = 23, 5
SPEC = {"epochs": 2, "batchsize": 2, "seqsize": 7}
LOSS = fs.seqloss(mse_loss)


def data(features=3, outputs=1, steps=T):
    draw = torch.Generator().manual_seed(3)
    x = 5 + 3 * torch.randn(steps, N, features, generator=draw)
    return x, x.cumsum(0)[..., :outputs]


def estimator(model, loss=LOSS, optimizer=adamw, **more):
    options = {name: more.pop(name) for name in ("device", "seed", "amp", "comm") if name in more}
    options = {"device": "cpu", "progress": False} | options
    return fs.Estimator(model, loss, optimizer, SPEC | more, **options)


def load(path, model=None, **more):
    return fs.Estimator.load(path, model, progress=False, device="cpu", **more)


def fitted(model=None, **more):
    return estimator(chain() if model is None else model, **more).fit(*data())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def same(got, wanted):
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            same(got[key], wanted[key])
    else:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
        assert got.dtype == wanted.dtype


CHAINS = {
    "chain": lambda: chain(),
    "bare torch": lambda: nn.GRU(3, 1),
    "bare fastseq": lambda: fs.nn.LSTM(3, 1, trainable_state=True),
    "nested": lambda: fs.nn.Chain(
        fs.nn.Chain(fs.nn.GRU(3, 6), nn.LayerNorm(6)),
        nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Dropout(0.2)),
        fs.nn.RNN(4, 4, 2, dropout=0.1, nonlinearity="relu"),
        nn.Linear(4, 1, bias=False),
    ),
    "double": lambda: chain().double(),
    "linear": lambda: nn.Linear(3, 1),
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=CHAINS)
def test_round_trip_without_the_model(make, path):
    """Predictions, losses and what more training does are the same bits."""
    x, y = data()
    model = make()
    est = estimator(model, scale_x="standard", scale_y="robust", shuffle=True)
    est.optimizer = torch.optim.SGD(model.parameters(), 1e-2)  # without a state of its own
    est.fit(x, y).save(path)
    loaded = load(path, loss=LOSS, optimizer=lambda params: torch.optim.SGD(params, 1e-2))
    assert repr(loaded.model) == repr(model)
    same(loaded.predict(x), est.predict(x))
    assert loaded.evaluate(x, y) == est.evaluate(x, y)
    assert loaded.spec == est.spec
    assert list(loaded.history_) == list(est.history_)
    for one in (est, loaded):
        torch.manual_seed(5)
        one.fit(x, y, epochs=1)
    assert loaded.history_[-1]["epoch"] == 3
    for (name, a), b in zip(
        loaded.model.state_dict().items(), est.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_bidirectional_model(path):
    x, _ = data()
    model = fs.nn.Chain(fs.nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match="bidirectional"):
        est = fitted(model)
    est.save(path)
    same(load(path).predict(x), est.predict(x))  # where warnings are errors


def test_options_that_pytorch_warns_of(path):
    x, _ = data()
    with pytest.warns(UserWarning, match="dropout option"):
        est = fitted(fs.nn.Chain(nn.GRU(3, 4, dropout=0.5), nn.Linear(4, 1)))
    est.save(path)
    same(load(path).predict(x), est.predict(x))


def test_a_model_without_parameters(path):
    est = estimator(nn.Tanh(), optimizer=lambda _: torch.optim.SGD([{"params": []}], 1e-2))
    est.save(path)
    x, _ = data()
    same(load(path).predict(x), est.predict(x))


def test_sixteen_bits(path):
    est = estimator(chain().bfloat16())
    est.save(path)
    loaded = load(path)
    assert loaded.model[1].weight.dtype == torch.bfloat16
    x, _ = data()
    assert torch.equal(loaded.step(x[0]), est.step(x[0]))


def test_targets_without_a_last_axis(path):
    x, y = data()
    est = estimator(chain(), scale_y="standard").fit(x, y[..., 0])
    est.save(path)
    assert load(path).predict(x).shape == (T, N)
    same(load(path).predict(x), est.predict(x))
    same(load(path).step(x[0]), fresh(est).step(x[0]))


def test_classes(path):
    x, y = data()
    est = estimator(chain(outputs=3), fs.seqloss(cross_entropy), scale_x="standard", shuffle=True)
    est.fit(x, (y[..., 0] > y.mean()).long())
    est.save(path)
    same(load(path).predict(x), est.predict(x))


class Named(nn.Module):
    """Takes a dict and returns one."""

    def __init__(self):
        super().__init__()
        self.rnn = fs.nn.GRU(5, 4)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x, state=None):
        h, state = self.rnn(torch.cat([x["a"], x["b"]], -1), state)
        return {"sum": h.sum(-1, keepdim=True) * self.scale, "h": h}, state


def test_dicts_of_inputs_and_outputs(path):
    x = {"a": data(3)[0], "b": data(2)[0] ** 2}
    y = {"sum": x["a"][..., :1], "h": torch.cat([x["b"]] * 2, -1)}

    def loss(m, xs, ys):
        out = m(xs)
        return mse_loss(out["sum"], ys["sum"]) + mse_loss(out["h"], ys["h"])

    est = estimator(Named(), loss, scale_x="standard", scale_y="robust").fit(x, y)
    est.model.scale.fill_(0.25)  # buffers are saved too
    est.save(path)
    same(load(path, Named()).predict(x), est.predict(x))
    now = {name: part[0] for name, part in x.items()}
    same(load(path, Named).step(now)["sum"], fresh(est).step(now)["sum"])


def test_tuples_of_inputs(path):
    x = (data(3)[0], data(2)[0])
    est = estimator(TwoInputs())
    wanted = est.predict(x)
    est.save(path)
    same(load(path, TwoInputs).predict(x), wanted)


@pytest.mark.parametrize("given_as", ["instance", "class", "function"])
def test_a_model_of_ones_own(given_as, path):
    x, _ = data()
    est = fitted(Custom(hidden=6))
    est.save(path)
    with pytest.raises(ValueError, match=r"weights of a Custom.*models\.Custom.*model="):
        load(path)
    if given_as == "class":
        with pytest.raises(ValueError, match=r"float32 \(4, 7\) in the model.*\(6, 9\) in the f"):
            load(path, Custom)
        return
    model = Custom(hidden=6)
    loaded = load(path, model if given_as == "instance" else lambda: model)
    assert loaded.model is model
    same(loaded.predict(x), est.predict(x))


def test_what_is_no_model(path):
    fitted().save(path)
    for bad in (3, "torch.nn.Linear", lambda: 3):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, or a callable"):
            load(path, bad)


def test_an_exported_example_comes_back(path, tmp_path):
    fitted(scale_x="standard").save(path)
    loaded = load(path)
    loaded.export(tmp_path / "model.pt2")  # needs an example
    assert (tmp_path / "model.pt2").exists()


def test_frozen_parameters_stay_frozen(path):
    model = chain()
    model[0].weight_hh_l0.requires_grad_(False)
    fitted(model).save(path)
    frozen = [n for n, p in load(path).model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight_hh_l0"]


def test_shared_weights_need_the_model(path):
    def tied():
        model = fs.nn.Chain(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
        model[2].weight = model[0].weight
        return model

    x, _ = data()
    est = fitted(tied())
    est.save(path)
    with pytest.raises(ValueError, match="pass model="):
        load(path)
    loaded = load(path, tied)
    assert loaded.model[2].weight is loaded.model[0].weight
    same(loaded.predict(x), est.predict(x))


def test_a_compiled_model_is_saved_as_what_was_compiled(path):
    x, _ = data()
    est = fitted()
    est.model = torch.compile(est.model)
    est.save(path)
    same(load(path).predict(x), est.predict(x))
    assert type(load(path).model) is fs.nn.Chain


def test_options_of_training(path):
    est = fitted(seed=7, amp="bf16", clip_norm=0.5)
    est.save(path)
    loaded = load(path)
    assert (loaded.seed, loaded.amp, loaded.spec.clip_norm) == (7, "bf16", 0.5)
    assert load(path, amp=None).amp is None
    drawn = fitted()
    drawn.save(path)
    assert load(path).seed is None
    assert load(path)._drawn_seed == drawn._drawn_seed


def test_loss_and_optimizer_are_asked_for(path):
    x, y = data()
    est = fitted()
    est.save(path)
    loaded = load(path)
    with pytest.raises(ValueError, match="evaluate needs a loss, which is in no file: pass loss="):
        loaded.evaluate(x, y)
    with pytest.raises(ValueError, match="fit needs a loss"):
        loaded.fit(x, y)
    loaded = load(path, loss=LOSS)
    with pytest.raises(ValueError, match="fit needs an optimizer"):
        loaded.fit(x, y)
    assert loaded.evaluate(x, y) == est.evaluate(x, y)
    load(path, loss=LOSS, optimizer=adamw).fit(x, y)
    with pytest.raises(TypeError, match="no_such"):
        load(path, no_such=3)


def test_weights_are_there_for_other_tools(path):
    est = fitted()
    est.save(path)
    weights = load_file(path)
    for name, a in est.model.state_dict().items():
        assert torch.equal(weights[f"model.{name}"], a)


# State


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
        assert "fastseq.wrappers" not in sys.modules
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


def fresh(est):
    est.reset_state()
    return est


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


# Files


def test_a_failure_leaves_the_old_file(path, monkeypatch):
    est = fitted()
    est.save(path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match="no space"):
            est.save(path)
    est.model.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match=r"odd"):
        est.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_where_nothing_can_be_written(tmp_path):
    est = fitted()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        est.save(tmp_path / "nowhere" / "model")
    with pytest.raises(IsADirectoryError):
        est.save(tmp_path)
    for bad in (None, 3):
        with pytest.raises(TypeError):
            est.save(bad)


def test_where_nothing_can_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(TypeError):
        load(None)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("writer", ["torch", "torch, old", "pickle", "pickle 0", "joblib"])
def test_pickles_are_refused(writer, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if writer == "torch":
        torch.save(Evil(), path)
    elif writer == "torch, old":
        torch.save(Evil(), path, _use_new_zipfile_serialization=False)
    elif writer == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif writer == "pickle 0":
        path.write_bytes(pickle.dumps(Evil(), protocol=0))
    else:
        __import__("joblib").dump(Evil(), path)
    with pytest.raises(fs.CheckpointError, match="pickle" if writer != "pickle 0" else "whole"):
        load(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0" * 100, b"{}" * 20, b"some text\n" * 10, b"\xff" * 50]
)
def test_other_files_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(fs.CheckpointError):
        load(path)


def test_files_of_tensors_that_are_no_estimators(path):
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(fs.CheckpointError, match="not written by"):
        load(path)
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(fs.CheckpointError):
        load(path)
    rewritten(path, {"kind": "something else"})
    with pytest.raises(fs.CheckpointError, match=r"not written by Estimator\.save"):
        load(path)


def rewritten(path, content):
    image = Image()
    image.take(*pack(content))
    write(path, image)


def edited(path, edit):
    """Change what a file holds, with a checksum that fits."""
    tensors, text = read(path)
    content = unpack(text, tensors)
    edit(content)
    rewritten(path, content)


def test_other_versions_are_refused(path):
    fitted().save(path)
    edited(path, lambda content: content.update(format=2))
    with pytest.raises(
        fs.CheckpointError, match="format 2, this version of fastseq reads format 1"
    ):
        load(path)


@pytest.mark.parametrize("key", ["layers", "spec", "options", "fitted", "model", "state", "frozen"])
def test_files_that_lack_something(key, path):
    fitted().save(path)
    edited(path, lambda content: content.pop(key))
    with pytest.raises(fs.CheckpointError, match="lacks what this version of fastseq saves"):
        load(path)


def test_a_file_that_names_code_runs_none(path):
    fitted().save(path)
    edited(path, lambda content: content.update(layers={"layer": "os.system", "command": "true"}))
    with pytest.raises(ValueError, match=r"'os\.system' is no layer"):
        load(path)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (lambda: chain(hidden=5), r"0\.weight_ih_l0 is float32 \(20, 3\) in the model, but .*\(16, 3\)"),
        (lambda: chain().double(), r"0\.weight_ih_l0 is float64 \(16, 3\) in the model, but float32"),
        (lambda: nn.GRU(3, 4), r"the model has weight_ih_l0, float32 \(12, 3\), which the file has no"),
        (lambda: fs.nn.Chain(nn.LSTM(3, 4)), r"the file has 1\.weight, float32 \(1, 4\), which the mo"),
    ],
)  # fmt: skip
def test_the_first_difference_to_another_model_is_named(model, difference, path):
    fitted().save(path)
    other = model()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(fs.CheckpointError, match="another model: " + difference):
        load(path, other)
    for name, a in other.state_dict().items():
        assert torch.equal(a, before[name])  # nothing was changed


def test_a_description_that_does_not_fit_its_weights(path):
    fitted().save(path)
    edited(path, lambda content: content["model"].update({"1.weight": torch.ones(2, 4)}))
    with pytest.raises(
        fs.CheckpointError, match=r"1\.weight is float32 \(1, 4\) in the model, but"
    ):
        load(path)
    edited(path, lambda content: content["model"].pop("1.weight"))
    with pytest.raises(fs.CheckpointError, match=r"the model has 1\.weight"):
        load(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a file with all there can be holds."""
    path = tmp_path_factory.mktemp("whole") / "model"
    torch.manual_seed(0)
    est = fitted(chain(hidden=2), scale_x="standard", scale_y="standard")
    est.predict(data()[0])
    est.save(path, state=True)
    return path.read_bytes()


def test_truncated_files_are_refused(whole, path):
    for length in {*range(0, len(whole), 97), 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(fs.CheckpointError):
            load(path)


@settings(max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(place, bit, whole, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "flipped"
    flipped = bytearray(whole)
    index = int(place * len(whole))
    flipped[index] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(fs.CheckpointError):
        load(path)


def test_the_header_is_text(whole, path):
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    json.loads(header["fastseq"])


# Drawn models

RECURRENT = st.sampled_from([nn.LSTM, nn.GRU, nn.RNN, fs.nn.LSTM, fs.nn.GRU, fs.nn.RNN])
BETWEEN = st.sampled_from(
    [nn.Tanh, nn.ReLU, nn.SiLU, lambda: nn.Dropout(0.3), lambda: nn.Softmax(-1), nn.Identity,
     lambda: nn.LeakyReLU(0.2)]
)  # fmt: skip


@st.composite
def chains(draw):
    layers, size = [], 3
    for _ in range(draw(st.integers(1, 5))):
        hidden = draw(st.integers(1, 5))
        kind = draw(st.sampled_from(["recurrent", "linear", "norm", "between", "nested"]))
        if kind == "recurrent":
            options = {"bias": draw(st.booleans()), "num_layers": draw(st.integers(1, 2))}
            layers.append(draw(RECURRENT)(size, hidden, **options))
            size = hidden
        elif kind == "linear":
            layers.append(nn.Linear(size, hidden, bias=draw(st.booleans())))
            size = hidden
        elif kind == "norm":
            layers.append(
                nn.LayerNorm(size, eps=draw(st.floats(1e-6, 1)), bias=draw(st.booleans()))
            )
        elif kind == "between":
            layers.append(draw(BETWEEN)())
        else:
            layers.append(nn.Sequential(nn.Linear(size, hidden), draw(BETWEEN)()))
            size = hidden
    return fs.nn.Chain(*layers, nn.Linear(size, 1))


@settings(max_examples=40)
@given(model=chains(), scale=st.sampled_from([None, "standard", "robust"]))
def test_drawn_chains_come_back_with_state(model, scale, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "drawn"
    x, y = data(steps=9)
    est = estimator(model, scale_x=scale, epochs=1).fit(x, y)
    est.predict(x)
    est.save(path, state=True)
    loaded = load(path)
    same(loaded.predict(x[:4], reset=False), est.predict(x[:4], reset=False))
    same(loaded.step(x[4]), est.step(x[4]))
    same(loaded.predict(x), est.predict(x))
