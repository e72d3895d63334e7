"""Files that are whole, but were not written by fastseq: small inputs that campaigns have found."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
from saved import data, estimator, fitted
from torch import nn

import fastseq as fs
from fastseq.checkpoint.encoding import decode, encode
from fastseq.checkpoint.format import Image, read, write
from fastseq.checkpoint.limited_size import no_larger_than
from fastseq.nn.model_description import build, describe_model

X = np.random.default_rng(0).standard_normal((12, 6, 3)).astype("f4")
WORDS = np.where(X.sum((1, 2)) > 0, "up", "down")


def rewrite(path, change):
    """Change the text of a file, with the right checksum."""
    tensors, text = read(path)
    image = Image()
    image.take(tensors, change(text))
    write(path, image)


def retree(path, change):
    """Change the contents of a file."""
    tensors, text = read(path)
    tree = decode(text, tensors)
    change(tree)
    image = Image()
    image.take(*encode(tree))
    write(path, image)


@pytest.fixture(scope="module")
def classifier():
    return fs.SequenceClassifier("gru", epochs=2, hidden_size=8, random_state=0).fit(X, WORDS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["hidden_size", 8]', '["hidden_size", 20000]'),
        ('["num_layers", null]', '["num_layers", 1000000000]'),
    ],
)
def test_a_small_file_makes_no_large_classifier(old, new, classifier, tmp_path):
    """The first took 5 GB and a minute, before the weights were found to be others."""
    path = tmp_path / "forged.safetensors"
    classifier.save(path)
    rewrite(path, lambda text: text.replace(old, new))
    start = time.monotonic()
    with pytest.raises(
        fs.CheckpointError, match=r"forged.* describes a larger model than it holds"
    ):
        fs.SequenceClassifier.load(path)
    assert time.monotonic() - start < 5


def test_a_small_file_makes_no_large_forecaster(tmp_path):
    forecaster = fs.SequenceForecaster(3, epochs=1, hidden_size=4, lags=8, validation=0)
    forecaster.fit(np.sin(np.arange(40) / 2))
    path = tmp_path / "forged.safetensors"
    forecaster.save(path)
    for name in ("ensemble", "horizon"):
        forecaster.save(path)
        rewrite(path, lambda text: re.sub(rf'\["{name}", \d+\]', f'["{name}", 1000000]', text))  # noqa: B023
        with pytest.raises(fs.CheckpointError, match="describes a larger model than it holds"):
            fs.SequenceForecaster.load(path)


def test_descriptions_of_endless_models():
    """No memory is needed on the meta device, but time."""
    for model, size in (
        (fs.nn.GRU(3, 4), "num_layers"),
        (fs.nn.TCN(3, 2, width=4, depth=1), "depth"),
        (fs.nn.RandomKernels(3, steps=20, groups=2), "groups"),
    ):
        description = {**describe_model(model), size: 10**9}
        with (
            pytest.raises(fs.CheckpointError, match=r"file describes a larger model"),
            no_larger_than(model.state_dict(), "file"),
        ):
            build(description)
        with no_larger_than(model.state_dict(), "file"):
            build(describe_model(model))


def test_other_threads_may_make_what_they_like():
    from concurrent.futures import ThreadPoolExecutor

    with no_larger_than({}, "file"), ThreadPoolExecutor(1) as pool:
        pool.submit(nn.Linear, 2000, 2000).result()
        with pytest.raises(fs.CheckpointError):
            nn.Linear(2000, 2000)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["spec"].update(shuffle=[False]),
        lambda tree: tree["spec"].update(more=1),
        lambda tree: tree["spec"].update(context=1),
        lambda tree: tree["options"].update(amp="x"),
        lambda tree: tree["fitted"].update(history=[3]),
        lambda tree: tree["fitted"].update(scaling={"x": 3}),
        lambda tree: tree.update(layers=[1]),
        lambda tree: tree.update(model={"a": 3}),
        lambda tree: tree["model"].update({"0.weight_ih_l0": torch.zeros(1)}),
        lambda tree: tree["model"].update(
            {key: a.long() for key, a in tree["model"].items()}
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_an_estimator_is_refused_with_the_files_name(change, tmp_path):
    path = tmp_path / "forged.safetensors"
    fitted().save(path)
    retree(path, change)
    with pytest.raises(fs.CheckpointError, match=r"forged\.safetensors"):
        fs.Estimator.load(path, progress=False, device="cpu")


def test_a_model_that_fit_does_not_take_is_refused_with_the_files_name(tmp_path):
    path = tmp_path / "forged.safetensors"
    est = estimator(nn.GRU(3, 1), epochs=1).fit(*data())
    est.save(path)
    rewrite(path, lambda text: re.sub(r'("batch_first", )false', r"\1true", text))
    with pytest.raises(fs.CheckpointError, match=r"forged\.safetensors.*time-major"):
        fs.Estimator.load(path, progress=False, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["parameters"].update(warm_suart=True),
        lambda tree: tree["parameters"].update({3: True}),
        lambda tree: tree["fitted"].update(_sizes=(1, 2)),
        lambda tree: tree["fitted"]["_sizes"][2]["fields"].update(dropout=1.0),
        lambda tree: tree["optimizer"]["state"].update(state={0: 3}),
        lambda tree: tree["optimizer"]["state"]["state"][0].update(exp_avg=torch.zeros(1)),
        lambda tree: tree["optimizer"]["state"]["param_groups"][0].update(betas=(0.9,)),
        lambda tree: tree.update(schedule=[[1]]),
        lambda tree: tree.update(learner=None),
    ],
)
def test_what_cannot_be_a_classifier_is_refused_with_the_files_name(change, classifier, tmp_path):
    path = tmp_path / "forged.safetensors"
    classifier.save(path)
    retree(path, change)
    with pytest.raises(fs.CheckpointError, match=r"forged\.safetensors"):
        fs.SequenceClassifier.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(first=-(10**9)),
        lambda tree: tree.update(first=10**9),
        lambda tree: tree.update(chunk="x"),
        lambda tree: tree.update(sums=(1.0, 2.0)),
        lambda tree: tree.update(seconds="x"),
        lambda tree: tree.update(seed=[1]),
        lambda tree: tree["ranks"][0]["random"].update(numpy="x"),
        lambda tree: tree["ranks"][0]["random"].pop("python"),
        lambda tree: tree["optimizer"]["state"]["state"][0].update(exp_avg=torch.zeros(1)),
        lambda tree: tree["optimizer"]["state"]["state"][0].update(exp_avg_sq=3),
        lambda tree: tree["optimizer"]["state"]["state"].update({99: {"step": 1}}),
        lambda tree: tree["optimizer"]["state"]["param_groups"][0].update(betas=(0.9,)),
        lambda tree: tree["optimizer"]["state"]["param_groups"][0].update(lr=[1]),
        lambda tree: tree.update(callbacks=[3]),
        lambda tree: tree["model"].update(parameters=3),
    ],
)
def test_what_cannot_be_a_checkpoint_is_refused_with_the_files_name(change, tmp_path):
    every = fs.callbacks.Checkpoint(tmp_path / "run", every_updates=1, keep=100)
    estimator(nn.GRU(3, 1), epochs=1).fit(*data(), checkpoint=every)
    path = sorted((tmp_path / "run").iterdir())[2]  # within the epoch
    retree(path, change)
    with pytest.raises(fs.CheckpointError, match=path.name.replace(".", r"\.")):
        estimator(nn.GRU(3, 1), epochs=1).fit(*data(), resume=path)


def test_settings_that_an_optimizer_lacks_are_its_own(tmp_path):
    """As those of a version of torch that has fewer."""
    estimator(nn.GRU(3, 1), epochs=1).fit(*data(), checkpoint=tmp_path / "run")
    path = next((tmp_path / "run").iterdir())
    retree(path, lambda tree: tree["optimizer"]["state"]["param_groups"][0].pop("weight_decay"))
    est = estimator(nn.GRU(3, 1), epochs=2).fit(*data(), resume=path)
    assert "weight_decay" in est.optimizer.param_groups[0]


@pytest.mark.parametrize("changed", ["text", "header"])
def test_messages_about_files_are_short(changed, tmp_path):
    path = tmp_path / "forged.safetensors"
    fitted().save(path)
    if changed == "text":
        rewrite(path, lambda _: json.dumps({"x" * 10_000: 1}))
    else:
        header = json.dumps({"x": "x" * 10_000}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(fs.CheckpointError) as caught:
        fs.Estimator.load(path)
    assert len(str(caught.value)) < 1000


def test_aliases_in_settings_do_not_fill_the_memory(tmp_path):
    """Of 9 lines, each of which has the one before ten times."""
    path = tmp_path / "space.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]  # fmt: skip
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"space\.yaml: it has more than 100000 values"):
        fs.SearchSpace(path)
    path.write_text("lr: &a [0.1, 0.2]\ndropout: *a")
    assert repr(fs.SearchSpace(path)) == "SearchSpace(lr, dropout)"


def test_floats_that_numpy_has_not_are_told_with_their_file(tmp_path):
    """Exponents and mantissas as in a damaged file."""
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_fields(63, 40, 23, 0, 40)
    kind.set_ebias(2**22 - 1)
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file, suppress(ValueError):
        h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((2, 2, 2)))
    for read_it in (fs.h5load, lambda path: fs.h5mmap(path, "x")):
        with pytest.raises((TypeError, ValueError), match=r"odd\.h5"):
            read_it(path)
