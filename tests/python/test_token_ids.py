"""Ids reach models that look them up exactly, or are refused before anything is learnt."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import fastseq as fs

HUGE = 2**53
SPEC = {"epochs": 1, "batchsize": 4, "seqsize": 6, "shuffle": False}


class Digits(nn.Module):
    """Looks at all digits of ids, and remembers what it got."""

    num_embeddings = HUGE

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(18, 1)
        self.seen = []

    def forward(self, x):
        assert x.dtype == torch.int64
        self.seen.append(x.clone())
        digits = torch.cat([x // 10**power % 10 for power in range(18)], -1)
        return self.layer(digits.to(self.layer.weight.dtype))

    def got(self, x):
        found = [a for a in self.seen if a.shape == x.shape and torch.equal(a, x)]
        self.seen.clear()
        return bool(found)


class Hashes(nn.Module):
    """Looks ids up, but does not say so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer((x.long() % 7).to(x.dtype))


def estimator(model, **spec):
    loss = fs.seqloss(nn.MSELoss())
    return fs.Estimator(
        model, loss, torch.optim.SGD, {**SPEC, **spec}, progress=False, device="cpu"
    )


def words(count=10, outputs=1):
    return fs.nn.Chain(
        nn.Embedding(count, 3), nn.Flatten(2), fs.nn.LSTM(3, 4), nn.Linear(4, outputs)
    )


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(HUGE - 2**30, HUGE, (6, 4, 1), generator=generator)
    assert not torch.equal(found.float().long(), found)
    return found


@pytest.fixture
def y():
    return torch.zeros(6, 4, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kind", ["tensor", "array", "swapped", "uint64", "rows", "windows", "list"]
)
def test_ids_arrive_exactly(ids, y, kind, dtype, tmp_path):
    model = Digits().to(dtype)
    est, y = estimator(model), y.to(dtype)
    x = {
        "tensor": lambda: ids,
        "array": ids.numpy,
        "swapped": lambda: ids.numpy().astype(">i8"),
        "uint64": lambda: ids.numpy().astype(np.uint64),
        "list": lambda: [one.numpy() for one in ids.unbind(1)],
    }.get(kind)
    if x is None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            chunks = (2, 2, 1) if kind == "windows" else None
            file.create_dataset("x", data=ids.numpy(), chunks=chunks)
        x = fs.h5mmap(tmp_path / "x.h5", "x")
    else:
        x = x()
    est.fit(x, list(y.unbind(1)) if kind == "list" else y)
    assert model.got(ids)
    est.predict(x)
    assert model.got(ids)


def test_ids_of_a_step_arrive_exactly(ids):
    model = Digits()
    est = estimator(model)
    for x in (ids[0], ids[0].numpy(), ids[0].numpy().astype(np.uint64)):
        est.step(x)
        assert model.got(ids[:1])


def test_ids_beside_numbers(ids, y):
    class Both(Digits):
        def forward(self, x):
            return super().forward(x["ids"]) + x["numbers"] + x["static"]

    est = estimator(Both())
    x = {
        "ids": ids,
        "numbers": torch.zeros(6, 4, 1, dtype=torch.float64),
        "static": torch.ones(4, 1, dtype=torch.float64),
    }
    est.fit(x, y)
    assert est.model.got(ids)
    y1 = est.step({name: a[0] if a.dim() == 3 else a for name, a in x.items()})
    assert est.model.got(ids[:1])
    torch.testing.assert_close(y1, torch.from_numpy(est.predict(x)[0]))


def test_exported_programs_take_ids(y, tmp_path):
    x = torch.arange(24).view(6, 4, 1) % 10
    est = estimator(words())
    est.fit(x, y)
    est.export(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    found, _ = program(x[:5, :3], (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)))
    np.testing.assert_allclose(found.detach(), est.predict(x[:5, :3]), rtol=1e-5, atol=1e-6)


def test_ids_of_earlier_steps(y):
    class Before(nn.Module):
        num_embeddings = 10

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 1)

        def forward(self, x):
            z = self.embed(x[..., 0])
            return z + torch.cat([torch.zeros_like(z[:1]), z[:-1]])

    x = torch.arange(24).view(6, 4, 1) % 10
    est = estimator(Before(), seqsize=2, context=1)
    est.fit(x, y)
    with torch.no_grad():
        np.testing.assert_allclose(est.predict(x), est.model(x), rtol=1e-6)


def test_scaled_targets_leave_ids_alone(ids):
    est = estimator(Digits(), scale_y="standard")
    est.fit(ids, torch.arange(24.0).view(6, 4, 1))
    assert est.model.got(ids)
    est.step(ids[0])
    assert est.model.got(ids[:1])


@pytest.mark.parametrize("bad", [-1, 10])
@pytest.mark.parametrize("stored", [torch.int64, torch.int8])
def test_unknown_ids_are_refused_before_anything_is_learnt(y, bad, stored):
    x = torch.ones(6, 4, 1, dtype=stored)
    x[5, 3] = bad
    est = estimator(words(), seqsize=2, batchsize=2)
    before = {name: p.clone() for name, p in est.model.state_dict().items()}
    where = "step 5, sequence 3"
    for call in (
        lambda: est.fit(x, y),
        lambda: est.fit(x * 0, y, validation=(x, y)),
        lambda: est.predict(x),
        lambda: est.evaluate(x, y),
    ):
        with pytest.raises(ValueError, match=rf"id {bad} at {where}, but the model knows 10 ids"):
            call()
    with pytest.raises(ValueError, match=f"id {bad} at this step, sequence 3, but the model knows"):
        est.step(x[5])
    assert all(torch.equal(p, before[name]) for name, p in est.model.state_dict().items())


def test_large_unsigned_ids_are_named_as_they_are(y):
    x = np.ones((6, 4, 1), np.uint64)
    x[5, 3] = 2**64 - 5
    est = estimator(words())
    said = "holds the id 18446744073709551611"
    for call in (
        lambda: est.fit(x, y),
        lambda: est.predict([one.copy() for one in x.swapaxes(0, 1)]),
        lambda: est.step(torch.from_numpy(x[5])),
        lambda: fs.SequenceRegressor(words()).fit(x.swapaxes(0, 1), np.arange(4.0)),
    ):
        with pytest.raises(ValueError, match=rf"{said} .* knows 10 ids|{said}, but .* 10 ids"):
            call()


def test_ids_that_do_not_count_need_not_be_known(y):
    x = torch.ones(6, 4, 1, dtype=torch.int64)
    padded = x.clone()
    padded[3:, 1] = -100
    lengths = np.array([6, 3, 6, 6])
    est, other = estimator(words()), estimator(words())
    other.model.load_state_dict(est.model.state_dict())
    est.fit(padded, y, lengths=lengths)
    other.fit(x, y, lengths=lengths)
    for a, b in zip(est.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[3:, 1] = False
    est.fit(padded, y, mask=mask)


def test_floats_and_scaling_are_refused(y):
    est = estimator(words())
    with pytest.raises(TypeError, match=r"x must hold integers.*10 ids, got torch.float32"):
        est.fit(torch.ones(6, 4, 1), y)
    with pytest.raises(TypeError, match="x must hold integers"):
        est.step(torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"spec.scale_x must be None"):
        estimator(words(), scale_x="standard")


def test_integers_that_would_be_rounded_are_refused(ids, y, tmp_path):
    """A model that does not say that it looks ids up gets none that its dtype changes."""
    est = estimator(Hashes())
    most = torch.full_like(ids, 2**24 - 1)
    est.fit(most, y)
    for x in (ids, most + 2, -most - 2):
        with pytest.raises(ValueError, match="step 0, sequence 0, which float32 may round"):
            est.fit(x, y)
        with pytest.raises(ValueError, match="which float32 may round"):
            est.predict(x)
        with pytest.raises(ValueError, match="at this step, sequence 0, which float32 may round"):
            est.step(x[0])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = ids.numpy()
    with pytest.raises(ValueError, match="which float32 may round"):
        est.predict(fs.h5mmap(tmp_path / "x.h5", "x"))
    half = estimator(Hashes().bfloat16())
    half.predict(torch.full_like(ids, 255))
    with pytest.raises(ValueError, match=r"of about 25\d at .* which bfloat16 may"):
        half.predict(torch.full_like(ids, 257, dtype=torch.int16))


def test_large_quantities_may_be_scaled_or_floats(ids, y):
    est = estimator(Hashes())
    est.fit(ids.double(), y)
    estimator(nn.Linear(1, 1), scale_x="standard").fit(ids, y)


def test_ids_of_wrappers():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 10, n) for n in rng.integers(2, 9, 60)]
    y = np.array(["no", "yes"])[[int(x[-1] > 4) for x in texts]]
    model = fs.SequenceClassifier(words(10, 2), lr=0.02, epochs=60, random_state=0)
    assert model.fit(texts, y).score(texts, y) > 0.9
    assert model.estimator_.scaling_ is None
    bare = model.estimator_.predict([torch.as_tensor(x)[:, None] for x in texts])
    last = np.stack([found[-1] for found in bare])
    np.testing.assert_allclose(
        model.decision_function(texts), last[:, 1] - last[:, 0], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"holds the id 10 .* knows 10 ids"):
        model.predict([np.array([3, 10])])
    with pytest.raises(TypeError, match="x must hold integers"):
        model.predict([x.astype(float) for x in texts])


def test_ids_in_an_array_are_series():
    x = np.random.default_rng(0).integers(0, 10, (40, 7))
    y = x.sum(1).astype(float)
    model = fs.SequenceRegressor(words(), epochs=2, random_state=0).fit(x, y)
    np.testing.assert_array_equal(model.predict(x), model.predict(list(x)))
    made = model.as_module()(torch.from_numpy(x))
    np.testing.assert_allclose(made[:, 0], model.predict(x), rtol=1e-5)


@pytest.mark.parametrize("form", ["(N, T)", "(N, T, 1)", "list", "unequal"])
def test_integers_with_two_axes_are_ids_whatever_fit_got(form):
    x = np.random.default_rng(0).integers(0, 10, (12, 7))
    ways = {"(N, T)": x, "(N, T, 1)": x[..., None], "list": list(x)}
    given = ways.get(form, [one[: 7 - n % 3] for n, one in enumerate(x)])
    model = fs.SequenceRegressor(words(), epochs=2, random_state=0, batchsize=2)
    model.fit(given, x.sum(1).astype(float))
    for other in (x, x[:, :4], x[:, [*range(7), 0, 1]].astype(np.uint8)):
        wanted = model.predict(other[..., None])
        np.testing.assert_array_equal(model.predict(other), wanted)
        as_lists = model.predict(list(other))
        np.testing.assert_allclose(as_lists, wanted, rtol=1e-5, atol=1e-6)
        made = model.as_module()(torch.from_numpy(other))
        np.testing.assert_allclose(made[:, 0], wanted, rtol=1e-4, atol=1e-5)
    model.partial_fit(x[:, :3], x.sum(1).astype(float))
    turned = fs.SequenceRegressor(words(), epochs=2, random_state=0, channels_first=True)
    turned.fit(x[:, None], x.sum(1).astype(float))
    np.testing.assert_array_equal(turned.predict(x[:, :4]), turned.predict(x[:, None, :4]))


class Told(nn.Module):
    """Remembers lengths: it would take the id 0 at the ends for padding."""

    num_embeddings, pad_token_id = 10, 0

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 1)
        self.seen = []

    def forward(self, x, lengths=None):
        self.seen.append((len(x), None if lengths is None else lengths.tolist()))
        return self.embed(x[..., 0])


def test_models_that_know_padding_are_told_all_lengths():
    equal = [torch.ones(3, 1, dtype=torch.int64)] * 4
    est = estimator(Told())
    est.fit(equal, [torch.zeros(3, 1)] * 4)
    assert (3, [3, 3, 3, 3]) in est.model.seen
    est.model.seen.clear()
    est.predict([torch.ones(n, 1, dtype=torch.int64) for n in (3, 3, 2)])
    assert est.model.seen[-2:] == [(2, [2]), (3, [3, 3])]
    est.model.seen.clear()
    est.predict(torch.ones(3, 2, 1, dtype=torch.int64))
    assert est.model.seen[-1] == (3, None)
    est.predict(torch.ones(3, 2, 1, dtype=torch.int64), lengths=[3, 3])
    assert est.model.seen[-1] == (3, [3, 3])
    model = fs.SequenceRegressor(Told(), epochs=2, device="cpu")
    model.fit(equal, np.zeros(4))
    assert model.estimator_.model.seen[-1] == (3, [3, 3, 3, 3])


def test_wrappers_refuse_what_would_change_ids(ids):
    x, y = np.arange(40).reshape(20, 2) % 10, np.arange(20.0)
    for scale_x in ("standard", "instance"):
        with pytest.raises(ValueError, match="scale_x must be None, as the module looks up ids"):
            fs.SequenceRegressor(words(), scale_x=scale_x).fit(x, y)
    with pytest.raises(ValueError, match="its builder needs it, too"):
        fs.SequenceRegressor(lambda n_in, n_out, rng: words(), epochs=1).fit(x[..., None], y)
    with pytest.raises(ValueError, match="X must hold these only"):
        fs.SequenceRegressor(words(), epochs=1).fit(x, y, static=np.arange(20)[:, None])
    large = ids.numpy().swapaxes(0, 1)
    plain = fs.SequenceRegressor(Hashes(), scale_x=None, epochs=2)
    with pytest.raises(ValueError, match="which float32 may round"):
        plain.fit(large, np.arange(4.0))
    plain.fit(large % 100, np.arange(4.0))
    with pytest.raises(ValueError, match="which float32 may round"):
        plain.predict(large)
