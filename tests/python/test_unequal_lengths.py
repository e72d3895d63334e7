"""Sequences of different lengths: the same loss and gradient as each of them alone."""

from __future__ import annotations

import copy

import h5py
import numpy as np
import pytest
import torch
from models import Custom, assert_same_parameters, chain
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import Dataset

import fastseq as fs
from fastseq.data.sequences import Sequences

LENGTHS = [7, 1, 10, 0, 4, 10]
SERIES = [torch.randn(n, 3) for n in LENGTHS]
TARGETS = [torch.randn(n, 1) for n in LENGTHS]


def bidirectional():
    return fs.nn.Chain(
        fs.nn.LSTM(3, 4, num_layers=2, bidirectional=True), fs.nn.GRU(8, 3), nn.Linear(3, 1)
    )


def padded(series):
    """Stack series, with what must not be looked at behind their ends."""
    out = torch.full((max(LENGTHS), len(series), series[0].shape[1]), torch.nan)
    for n, one in enumerate(series):
        out[: len(one), n] = one
    return out


def stored(kind, folder):
    """Return x, y and what else `fit` needs."""
    if kind in ("lengths", "mask"):
        x, y = padded(SERIES), padded(TARGETS)
        counts = ~y[..., 0].isnan()
        return x, y, {"lengths": LENGTHS} if kind == "lengths" else {"mask": counts}
    if kind == "list":
        return [s.numpy() for s in SERIES], TARGETS, {}
    if kind == "flat targets":
        return SERIES, [y[:, 0] for y in TARGETS], {}
    if kind == "dataset":
        return Pairs(), None, {}
    file = h5py.File(folder / "series.h5", "w")
    for number, (x, y) in enumerate(zip(SERIES, TARGETS, strict=True), 8):
        packed = {}
        if len(x) and "packed" in kind:
            packed = {"chunks": (min(len(x), 3), 2), "compression": "gzip"}
        file.create_dataset(f"x/{number}", data=x.numpy(), **packed)
        file[f"y/{number}"] = y.numpy()
    return file["x"], file["y"], {}


class Pairs(Dataset):
    def __len__(self):
        return len(SERIES)

    def __getitem__(self, index):
        return SERIES[index], TARGETS[index]


class Endless(Dataset):
    """Raises no IndexError past its end, as a dataset that computes its items may."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        assert index < 9, "it would go on for ever"
        return torch.full((index % 2 + 1, 3), 2.0), torch.zeros(index % 2 + 1, 1)


def test_a_dataset_ends_where_its_length_says():
    data = Sequences(Endless(), dtype=torch.float32)
    assert (data.count, data.lengths.tolist()) == (2, [2, 1])


def alone(model):
    """Return the mean loss over all samples, from each sequence run by itself."""
    total = sum(
        mse_loss(fs.Stateful(model)(x[:, None]), y[:, None], reduction="sum")
        for x, y in zip(SERIES, TARGETS, strict=True)
        if len(x)
    )
    return total / sum(LENGTHS)


KINDS = ["lengths", "list", "flat targets", "dataset", "group", "packed group"]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, make) for kind in KINDS for make in (chain, Custom, bidirectional)),
        ("mask", chain),  # it does not say that a sequence has ended,
        ("mask", Custom),  # which matters for what looks ahead
    ],
)
@pytest.mark.filterwarnings("ignore:the model has a bidirectional layer")
def test_loss_and_gradient_are_those_of_the_sequences_alone(kind, make, tmp_path):
    model = make()
    wanted = copy.deepcopy(model)
    x, y, options = stored(kind, tmp_path)
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.SGD(model.parameters(), lr=0.1),
        fs.Spec(1, 6, 10), progress=False,
    )  # fmt: skip
    loss = alone(wanted)
    assert est.evaluate(x, y, **options) == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    torch.optim.SGD(wanted.parameters(), lr=0.1).step()
    est.fit(x, y, **options)
    assert_same_parameters(model, wanted, rtol=1e-5)
    assert est.padding_ == pytest.approx(0 if kind == "mask" else 1 - 32 / 60)
    if isinstance(x, h5py.Group):
        x.file.close()


def test_chunks_and_blocks_make_no_difference_to_the_loss():
    model = chain()
    for batchsize, seqsize in [(1, 1), (2, 3), (4, 100), (100, 4)]:
        est = fs.Estimator(
            model, fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, batchsize, seqsize)
        )
        assert est.evaluate(SERIES, TARGETS) == pytest.approx(alone(model).item(), rel=1e-5)


def test_steps_one_by_one_know_the_lengths_too():
    model = fs.nn.LSTM(3, 4)
    m = fs.Stateful(model)
    x, lengths = torch.randn(5, 3, 3), torch.tensor([5, 2, 0])
    m.lengths = lengths
    for x_t in x:
        m(x_t)
    _, (h, c) = model(x, None, lengths=lengths)
    torch.testing.assert_close(m.state, (h, c))
    assert not h[:, 2].any()


def test_weights_per_sequence_and_per_step():
    model = chain()
    est = fs.Estimator(model, fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 2, 3))
    per_sequence = torch.rand(6)
    per_step = [w.expand(n).numpy() for w, n in zip(per_sequence, LENGTHS, strict=True)]
    expected = [
        float(w) * mse_loss(fs.Stateful(model)(x[:, None]), y[:, None], reduction="sum").item()
        for x, y, w in zip(SERIES, TARGETS, per_sequence, strict=True)
        if len(x)
    ]
    weight = float((per_sequence * torch.tensor(LENGTHS)).sum())
    for w in (per_sequence, per_step, [w[:, None] for w in per_step]):
        assert est.evaluate(Pairs(), w=w) == pytest.approx(sum(expected) / weight, rel=1e-5)
        loss = est.evaluate(SERIES, TARGETS, w)
        assert loss == pytest.approx(sum(expected) / weight, rel=1e-5)


BAD = [
    ({"x": SERIES, "y": TARGETS[1:]}, ValueError, "y must have as many sequences as x, got 5 and 6"),
    (
        {"x": SERIES, "y": [TARGETS[1], *TARGETS[1:]]}, ValueError,
        r"y\[0\] must have as many time steps as x\[0\], got 1 and 7",
    ),
    ({"x": SERIES, "y": padded(TARGETS)}, ValueError, "y must be a list of arrays like x"),
    ({"x": SERIES, "y": TARGETS, "lengths": LENGTHS}, ValueError, "lengths must be None for a list"),
    (
        {"x": [SERIES[0][:, :2], *SERIES[1:]], "y": TARGETS}, ValueError,
        r"x\[1\] must have as many features as x\[0\]",
    ),
    ({"x": [s[0, 0] for s in SERIES if len(s)], "y": TARGETS}, ValueError, r"x\[0\] must have 2 dim"),
    ({"x": [s[:0] for s in SERIES], "y": [s[:0] for s in TARGETS]}, ValueError, "no time steps"),
    ({"x": SERIES, "y": TARGETS, "w": torch.ones(10, 6)}, ValueError, "w must have the shape"),
    (
        {"x": padded(SERIES), "y": padded(TARGETS), "lengths": [1, 2]}, ValueError,
        r"lengths must have the shape \(6,\), got \(2,\)",
    ),
    (
        {"x": padded(SERIES), "y": padded(TARGETS), "lengths": [1.0] * 6}, TypeError,
        "lengths must be integers, got dtype float64",
    ),
    (
        {"x": padded(SERIES), "y": padded(TARGETS), "lengths": [1, 2, 11, 1, 1, -1]}, ValueError,
        r"between 0 and 10, but lengths\[2\] is 11",
    ),
    ({"x": Pairs(), "y": TARGETS}, ValueError, "the dataset's items hold targets"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_input(arguments, error, message):
    model = chain()
    before = copy.deepcopy(model)
    est = fs.Estimator(
        model, fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 2, 3), progress=False
    )
    with pytest.raises(error, match=message):
        est.fit(**arguments)
    assert_same_parameters(model, before, rtol=0)


def test_groups_within_groups_and_empty_ones(tmp_path):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 2, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("empty")
        file["a/b/c"] = np.zeros((3, 1))
        with pytest.raises(ValueError, match="x has no sequences: the group /empty is empty"):
            est.fit(file["empty"], file["empty"])
        with pytest.raises(TypeError, match="but it is the group /a, which holds b/"):
            est.fit(file["a"], file["a"])


def test_datasets_of_groups_are_paired_by_their_names(tmp_path):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 2, 10))
    weights = [np.ones((n, 1), np.float32) for n in LENGTHS]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for part, data, names in (
            ("x", SERIES, "012456"), ("y", TARGETS, "012756"), ("w", weights, "012345")
        ):  # fmt: skip
            for name, one in zip(names, data, strict=True):
                file[f"{part}/{name}"] = one
        x, y, w = (file[part] for part in "xyw")
        with pytest.raises(ValueError, match="y must have the same names as x, but only x has '4'"):
            est.fit(x, y)
        y.move("7", "4")
        with pytest.raises(ValueError, match="as x, but only x has '6', and only w has '3'; lists"):
            est.fit(x, y, w)
        est.fit(x, y, list(w.values()))


def test_names_that_differ_in_zeros_only_are_in_one_order(tmp_path):
    est = fs.Estimator(chain(), fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 2, 10))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for part, data, names in (("x", SERIES, ["1", "01"]), ("y", TARGETS, ["01", "1"])):
            group = file.create_group(part, track_order=True)
            for name in names:
                group[name] = data[int(name == "1")]
        est.fit(file["x"], file["y"])
