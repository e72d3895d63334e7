"""Files that are whole, but were not written by fastseq: small inputs that campaigns have found."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from saved import data, estimator, fitted
from torch import nn

import fastseq as fs
from fastseq.__main__ import main
from fastseq.checkpoint.encoding import decode, encode
from fastseq.checkpoint.format import Image, read, write
from fastseq.checkpoint.limited_size import no_larger_than
from fastseq.data.hdf5.commands import describe_file
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
        lambda tree: tree["optimizer"]["state"]["param_groups"][0].update(betas=(0.9, [0.9])),
        lambda tree: tree["optimizer"]["state"]["param_groups"][0].update(eps=[1.0, 2.0]),
        lambda tree: tree.update(format=list(range(1000))),
        lambda tree: tree.update(history=[{"updates": "x"}]),
        lambda tree: tree.update(ranks=[3]),
        lambda tree: tree["ranks"][0].pop("stop_request"),
        lambda tree: tree["ranks"][0].update(stop_request=3),
        lambda tree: tree["ranks"][0].update(since_common="x"),
        lambda tree: tree["ranks"][0].update(state=torch.zeros(7, 7, 7)),
        lambda tree: tree["ranks"].append({}),
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


def _trained_with_callbacks(epochs, **given):
    est = estimator(nn.GRU(3, 1), epochs=epochs)
    est.callbacks = [
        fs.callbacks.Patience(5),
        fs.callbacks.AnyOf(fs.callbacks.PQ(1e9)),
        fs.callbacks.Schedule(lambda own: torch.optim.lr_scheduler.StepLR(own, 1)),
        fs.callbacks.RestoreBest(monitor="loss"),
    ]
    return est.fit(*data(), **given)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, lambda state: state.update(last="x")),
        (0, lambda state: state.pop("rises")),
        (1, lambda state: state["criteria"][0].update(strip=[1.0, "x"])),
        (1, lambda state: state["criteria"].clear()),
        (2, lambda state: state["scheduler"].update(gamma="x")),
        (2, lambda state: state["scheduler"].update(base_lrs=3)),
        (2, lambda state: state["groups"][0].update(lr=[1])),
        (3, lambda state: state.update(value=[1.0])),
        (3, lambda state: state.update(epoch="x")),
        (3, lambda state: state["weights"].popitem()),
        (3, lambda state: state["weights"].update(weight_ih_l0=torch.zeros(1))),
    ],
)
def test_states_that_callbacks_cannot_have_are_refused_with_the_files_name(
    number, change, tmp_path
):
    _trained_with_callbacks(1, checkpoint=tmp_path / "run")
    path = next((tmp_path / "run").iterdir())
    retree(path, lambda tree: change(tree["callbacks"][number][1]))
    with pytest.raises(fs.CheckpointError, match=path.name.replace(".", r"\.")):
        _trained_with_callbacks(2, resume=path)


def test_a_scheduler_takes_only_what_it_has(tmp_path):
    """All else would become its attributes."""
    _trained_with_callbacks(1, checkpoint=tmp_path)
    path = next(tmp_path.iterdir())
    retree(path, lambda tree: tree["callbacks"][2][1]["scheduler"].update(optimizer=3))
    _trained_with_callbacks(2, resume=path)


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


def test_names_that_are_no_texts_are_told_with_their_file(tmp_path):
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"\xff\xfe", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((2,)))
    for read_it in (fs.h5load, describe_file, lambda path: fs.h5concat(tmp_path / "a.h5", [path])):
        with pytest.raises(ValueError, match=r"odd\.h5"):
            read_it(path)


def test_types_that_h5py_refuses_are_told_with_their_file(tmp_path, monkeypatch):
    """As of a damaged file: which types h5py refuses differs between its versions."""
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros((2, 2, 2))

    for error in (ValueError("Insufficient precision"), TypeError("no type"),
                  UnicodeDecodeError("utf-8", b"x", 0, 1, "x")):  # fmt: skip
        refused = Mock(side_effect=error)
        monkeypatch.setattr(h5py.Dataset, "shape", property(refused))
        for read_it in (fs.h5load, describe_file, lambda path: fs.h5mmap(path, "x")):
            with pytest.raises((ValueError, TypeError), match=r"odd\.h5"):
                read_it(path)


def test_long_texts_in_settings_are_not_repeated(tmp_path):
    path = tmp_path / "space.yaml"
    for text in (
        "decay_biases: " + "9" * 6000,
        "x" * 6000 + ": 1",
        "lr: [[" + "1, " * 9000 + "1]]",
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"space\.yaml") as caught:
            fs.SearchSpace(path, of=fs.SequenceForecaster)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.csv", b"ds,y,\xff\n1,2,3\n2,3,4\n"),
        ("values.csv", b"ds,y\n1,\xff\n2,3\n"),
        ("long.csv", b"ds," + b"x" * 5000 + b"\n1,2\n2,3\n"),
    ],
)
def test_tables_that_are_no_texts_are_told_with_their_file(name, content, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    fs.SequenceForecaster(3, epochs=1, hidden_size=4, lags=8, validation=0).fit(
        np.sin(np.arange(40) / 2)
    ).save(model)
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["predict", str(model), str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fastseq: error: ")
    assert name in said
    assert len(said) < 1000


def test_what_pandas_says_of_its_columns_may_be_wrong(tmp_path, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    about = json.dumps({"columns": [{"name": "y", "field_name": "y"}], "index_columns": []})
    table = pa.table({"ds": [1, 2], "y": [1.0, 2.0]}).replace_schema_metadata({"pandas": about})
    parquet.write_table(table, path)
    assert main(["fit", str(path), str(tmp_path / "m.safetensors"), "--horizon", "1"]) == 1
    assert "a.parquet is not Parquet, or is damaged" in capsys.readouterr().err
