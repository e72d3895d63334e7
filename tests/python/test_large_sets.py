"""Sets of samples that are not copied: in memory, in files; and early stopping on large ones."""

import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
import torch
import zarr

import fastseq as fs
from fastseq.data import samples_first
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.samples_first import LastSteps, SamplesFirst
from fastseq.data.sequences import Sequences
from fastseq.sklearn import SequenceClassifier, SequenceRegressor

SEED = 0
N, T, F = 60, 7, 2


def data(n=N, t=T, f=F, dtype=np.float32):
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((n, t, f)).astype(dtype)
    return x, np.where(x[:, -2:].sum((1, 2)) > 0, "up", "down")


def classifier(**options):
    options = {"hidden_size": 4, "epochs": 2, "batchsize": 8, "random_state": 0, **options}
    return SequenceClassifier(options.pop("module", "gru"), **options)


def stored(path, x, kind):
    """Return a dataset that holds `x`."""
    if kind == "zarr":
        a = zarr.open(
            str(path / "x.zarr"), mode="w", shape=x.shape, chunks=(7, *x.shape[1:]), dtype=x.dtype
        )
        a[:] = x
        return a
    if kind == "memory":
        file = h5py.File("x", "w", driver="core", backing_store=False)
        return file.create_dataset("x", data=x)
    more = {"chunks": (7, *x.shape[1:]), "compression": "gzip"} if kind == "compressed" else {}
    with h5py.File(path / "x.h5", "w") as file:
        file.create_dataset("x", data=x, **more)
    if kind == "mapped":
        return fs.h5mmap(path / "x.h5", "x")
    return h5py.File(path / "x.h5")["x"]


KINDS = ["contiguous", "compressed", "zarr", "mapped", "memory"]


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 16 samples, in pieces of 1."""
    monkeypatch.setattr(samples_first, "_WINDOW_BYTES", 16 * T * F * 4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in KINDS),
        ("zarr", {"seqsize": 3}),
        ("contiguous", {"seqsize": 3, "validation_fraction": 0.2}),
        ("compressed", {"validation_fraction": 0.2}),
        ("compressed", {"nan": "mask"}),
        ("compressed", {"module": "mlp"}),
        ("large", {"module": "linear"}),
        ("large", {"module": "lstm-fcn", "scale_x": "both"}),
        ("compressed", {"module": "lstm-fcn", "scale_x": "both"}),
        ("large", {"scale_x": None, "seqsize": 3}),
    ],
    ids=str,
)
def test_training_from_a_file_equals_that_from_memory(tmp_path, kind, options, monkeypatch):
    if kind == "large":  # samples are read one by one
        monkeypatch.setattr(samples_first, "_LARGE_BYTES", 0)
    x, y = data()
    one, two = (classifier(**options, shuffle=False) for _ in range(2))
    file = stored(tmp_path, x, kind)
    one.fit(x, y), two.fit(file, y)
    p, q = one.predict_proba(x), two.predict_proba(file)
    np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(p, two.predict_proba(x))
    assert one.score(x, y) == two.score(file, y)
    losses = [[row["loss"] for row in model.history_] for model in (one, two)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["contiguous", "compressed", "large"])
def test_orders_are_those_of_memory_where_all_fits_into_a_window(tmp_path, kind, monkeypatch):
    if kind == "large":
        monkeypatch.setattr(samples_first, "_LARGE_BYTES", 0)
    x, y = data()
    one, two = classifier().fit(x, y), classifier().fit(stored(tmp_path, x, kind), y)
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(x))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kind", ["compressed", "zarr"])
def test_windows_change_nothing_but_the_order(tmp_path, kind):
    x, y = data()
    file = stored(tmp_path, x, kind)
    same = {"shuffle": False, "validation_fraction": 0.3}
    one, two = classifier(**same).fit(x, y), classifier(**same).fit(file, y)
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(file))
    apart = classifier(validation_fraction=0.3, epochs=3).fit(file, y)
    assert np.isfinite([row["validation_loss"] for row in apart.history_]).all()


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("kind", ["compressed", "large"])
def test_targets_stay_with_their_samples_in_random_orders(tmp_path, kind, per_step, monkeypatch):
    if kind == "large":
        monkeypatch.setattr(samples_first, "_LARGE_BYTES", 0)
    x, _ = data()
    y = x[..., 0] if per_step else x[:, -1, 0]
    model = SequenceRegressor(
        "linear", per_step=per_step, epochs=40, batchsize=8, validation_fraction=0.3, lr=0.05,
        random_state=0,
    )  # fmt: skip
    model.fit(stored(tmp_path, x, kind), y, sample_weight=np.random.default_rng(1).random(N))
    assert model.score(x, y) > 0.999
    assert model.history_[-1]["validation_loss"] < 1e-3


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("per_step", [False, True])
def test_batches_larger_than_windows_are_read_once(tmp_path, per_step, monkeypatch):
    monkeypatch.setattr(samples_first, "_WINDOW_BYTES", 3 * T * F * 4)
    x, y = data()
    y = np.broadcast_to(y[:, None], x.shape[:2]) if per_step else y
    options = {"shuffle": False, "seqsize": 2, "batchsize": 20}
    reads = []
    reading = SamplesFirst._read
    monkeypatch.setattr(
        SamplesFirst, "_read", lambda self, *box: reads.append(box) or reading(self, *box)
    )
    one = classifier(**options, scale_x=None).fit(x, y)
    two = classifier(**options, scale_x=None, epochs=2).fit(stored(tmp_path, x, "zarr"), y)
    assert len(reads) <= 2 * (20 + 3)  # windows, of which some are in two batches
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(x))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("index", [None, np.arange(3, 60, 4), np.arange(60)[::2]])
def test_an_order_by_windows_has_each_sample_once_and_reads_it(tmp_path, index):
    x, _ = data()
    samples = SamplesFirst(stored(tmp_path, x, "zarr"), index)
    source = Sequences(samples, dtype=torch.float32)
    mine = x if index is None else x[index]
    found = []
    for seed in range(3):
        order = samples.draw(torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(len(mine)))
        samples.reorder(order)
        for n in range(0, len(mine), 5):
            got = samples[1:4, n : n + 5]
            np.testing.assert_array_equal(
                got, mine[order[n : n + 5].numpy()][:, 1:4].swapaxes(0, 1)
            )
        assert len(samples._windows) <= 2
        found.append(order.tolist())
    assert source.count == len(mine)
    assert found[0] != found[1]
    if index is None:  # a window holds samples from far apart
        assert max(np.ptp(found[0][i : i + 16]) for i in range(0, 48, 16)) > 32


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("part", [slice(None), slice(None, None, -3)])
def test_large_slabs_are_gathered_ahead(tmp_path, kind, part, monkeypatch):
    monkeypatch.setattr(samples_first, "_LARGE_BYTES", 0)
    x = np.random.default_rng(0).standard_normal((2700, 41, 16)).astype(np.float32)
    index = np.arange(2700)[part]
    array = x
    if kind == "file":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = x
        array = fs.h5mmap(tmp_path / "x.h5", "x")
    samples = SamplesFirst(array, index)
    order = samples.draw(torch.Generator().manual_seed(0))
    samples.reorder(order)
    data = Sequences(samples, dtype=torch.float32)
    assert data.leaves[0].lazy == (kind == "file")
    assert data.leaves[0].ahead is not None
    plan = ChunkPlan(steps=41, sequences=len(index), batchsize=870, seqsize=20)
    for chunk, batch in data.batches(plan.chunks()):
        wanted = x[index[order[chunk.n0 : chunk.n1].numpy()], chunk.t0 : chunk.t1]
        np.testing.assert_array_equal(batch.xs, wanted.swapaxes(0, 1))


def test_windows_read_each_sample_once_an_epoch(monkeypatch):
    monkeypatch.setattr(samples_first, "_WINDOW_BYTES", 16 * T * F * 4)
    x, _ = data()

    class Counted:
        shape, dtype, chunks, read = x.shape, x.dtype, (4, T, F), 0

        def __getitem__(self, index):
            part = x[index]
            self.read += len(part)
            return part

    counted = Counted()
    samples = SamplesFirst(counted)
    samples.reorder(samples.draw(torch.Generator().manual_seed(0)))
    for n in range(0, N, 8):
        for t in (0, 3, 6):
            samples[t : t + 3, n : min(n + 8, N)]
    assert N <= counted.read <= 1.5 * N


def test_partial_fit_and_weights_from_a_file(tmp_path):
    x, y = data()
    w = np.random.default_rng(1).random(N)
    one, two = (classifier(class_weight={"up": 2, "down": 1}, shuffle=False) for _ in range(2))
    file = stored(tmp_path, x, "compressed")
    for _ in range(2):
        one.partial_fit(x, y, sample_weight=w), two.partial_fit(file, y, sample_weight=w)
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(file))


@pytest.mark.parametrize("kind", ["contiguous", "compressed"])
@pytest.mark.parametrize("module", ["gru", "mlp"])
def test_tables_in_files_are_series_or_samples_as_in_memory(tmp_path, kind, module):
    x, _ = data(f=1)
    table, y = x[..., 0], x[:, -1, 0]
    one, two = (
        SequenceRegressor(module, epochs=2, random_state=0, shuffle=False) for _ in range(2)
    )
    file = stored(tmp_path, table, kind)
    one.fit(table, y), two.fit(file, y)
    np.testing.assert_array_equal(one.predict(table), two.predict(file))
    assert one.rows_ == two.rows_
    assert one.n_features_in_ == two.n_features_in_
    with pytest.raises(ValueError, match="features"):
        two.predict(stored(tmp_path, table[:, 1:], "memory"))


def test_targets_per_step_from_files(tmp_path):
    x, _ = data()
    y = x[..., :1].cumsum(1)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["y"] = y
    one, two = (SequenceRegressor("gru", epochs=2, random_state=0) for _ in range(2))
    with h5py.File(tmp_path / "y.h5") as file:
        one.fit(x, y), two.fit(stored(tmp_path, x, "contiguous"), file["y"])
    np.testing.assert_array_equal(one.predict(x), two.predict(x))


def test_double_precision_and_integers_in_files(tmp_path):
    x, y = data(dtype=np.float64)
    one = classifier(shuffle=False).fit(x, y)
    two = classifier(shuffle=False).fit(stored(tmp_path, x, "compressed"), y)
    assert two.predict_proba(x).dtype == np.float64
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(x))
    x = (100 * x).astype(np.int16)
    one = classifier(shuffle=False).fit(x, y)
    two = classifier(shuffle=False).fit(stored(tmp_path, x, "contiguous"), y)
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(x))


@pytest.mark.parametrize("kind", ["contiguous", "compressed"])
def test_missing_values_in_files_are_those_of_memory(tmp_path, kind):
    x, y = data()
    x[3, 2, 0] = x[5, -1] = np.nan
    x[7] = np.nan  # nothing is known
    file = stored(tmp_path, x, kind)
    one, two = (classifier(nan="mask", shuffle=False, epochs=3) for _ in range(2))
    one.fit(x, y), two.fit(file, y)
    np.testing.assert_array_equal(one.predict_proba(x), two.predict_proba(file))
    assert np.isnan(x[3, 2, 0])


@pytest.mark.parametrize("kind", ["contiguous", "compressed"])
def test_a_missing_value_in_a_file_is_found_when_it_is_read(tmp_path, kind):
    x, y = data()
    x[13, 4, 1] = np.nan
    file = stored(tmp_path, x, kind)
    with pytest.raises(fs.errors.NonFiniteError, match="NaN at step 4, sequence 13, feature 1"):
        classifier(scale_x=None).fit(file, y)
    x[13, 4, 1] = 0
    with pytest.raises(fs.errors.NonFiniteError, match="sequence 13"):
        classifier().fit(x, y).predict(file)


def test_what_a_file_cannot_be_is_refused(tmp_path):
    x, y = data()
    file = stored(tmp_path, x, "compressed")
    with pytest.raises(ValueError, match="channels_first=True needs X in memory"):
        classifier(channels_first=True).fit(file, y)
    with pytest.raises(ValueError, match="static needs X in memory"):
        classifier().fit(file, y, static=np.zeros((N, 1)))
    with pytest.raises(ValueError, match=r"must have the shape \(N, T, F\) or \(N, T\)"):
        classifier().fit(stored(tmp_path, x[..., None], "memory"), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier().fit(file, y[1:])
    with pytest.raises(ValueError, match="nan must be"):
        classifier(nan="keep").fit(file, y)
    with pytest.raises(ValueError, match="2 features"):
        classifier().fit(x[..., :1], y).predict(file)
    with h5py.File("a", "w", driver="core", backing_store=False) as closed:
        dataset = closed.create_dataset("x", data=x)
    with pytest.raises(ValueError, match="closed"):
        classifier().fit(dataset, y)


def test_the_last_steps_are_weighted_without_memory():
    last = LastSteps(torch.arange(3.0), 4)
    whole = torch.zeros(4, 3)
    whole[-1] = torch.arange(3.0)
    for t0, t1, n0, n1 in [(0, 4, 0, 3), (1, 3, 1, 3), (3, 4, 0, 1), (2, 2, 0, 3)]:
        assert torch.equal(last[t0:t1, n0:n1], whole[t0:t1, n0:n1])


def test_predictions_of_many_samples_are_made_in_parts(monkeypatch):
    x, y = data()
    y_steps = x.cumsum(1)
    one = classifier().fit(x, y)
    steps = SequenceRegressor("gru", epochs=1, random_state=0).fit(x, y_steps)
    rows = [a[: 3 + i % 4] for i, a in enumerate(x)]
    listed = SequenceRegressor("gru", epochs=1, random_state=0).fit(rows, [a * 2 for a in rows])
    whole = one.predict_proba(x), steps.predict(x), listed.predict(rows)
    monkeypatch.setattr("fastseq.sklearn.batched_outputs._STEPS", 20 * T)
    np.testing.assert_array_equal(whole[0], one.predict_proba(x))
    np.testing.assert_array_equal(whole[1], steps.predict(x))
    for a, b in zip(whole[2], listed.predict(rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


MEASURED = """
import sys
import numpy as np
from fastseq.sklearn import SequenceClassifier

def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def peak(call):
    x.sum(), y.sum()  # the system may have taken away pages that were not used
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before

n = int(sys.argv[1])
rng = np.random.default_rng(0)
x, y = rng.standard_normal((n, 100, 1), np.float32), np.arange(n) % 2
model = SequenceClassifier("gru", hidden_size=2, epochs=1, batchsize=256, random_state=0)
model.fit(x[:3000], y[:3000]).predict(x[:3000])  # imports and buffers
print(x.nbytes, peak(lambda: model.fit(x, y)), peak(lambda: model.predict(x)))
"""


@pytest.mark.slow
def test_a_million_series_need_little_memory_beside_them():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, "1000000"],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    size, fit, predict = map(int, run.stdout.split())
    assert fit < 0.25 * size + 2**25, (fit / size, predict / size)
    assert predict < 0.25 * size + 2**25, (fit / size, predict / size)


class TestEarlyStopping:
    def test_keeps_the_weights_of_the_best_epoch(self):
        x, y = data(80)
        model = classifier(
            early_stopping=True, validation_fraction=0.5, epochs=12, lr=0.3, schedule=None
        ).fit(x, y)
        losses = [row["validation_loss"] for row in model.history_]
        assert np.argmin(losses) < len(losses) - 1  # else nothing is shown
        again = classifier(
            validation_fraction=0.5, epochs=int(np.argmin(losses)) + 1, lr=0.3, schedule=None
        ).fit(x, y)
        np.testing.assert_array_equal(model.predict_proba(x), again.predict_proba(x))

    def test_stops_without_a_schedule_only(self):
        x, y = data(400)
        y = np.random.default_rng(3).permutation(y)  # nothing can be learnt
        stopped = classifier(
            early_stopping=True, epochs=60, schedule=None, lr=0.1, batchsize=40
        ).fit(x, y)
        losses = [row["validation_loss"] for row in stopped.history_]
        assert stopped.n_iter_ < 60
        assert stopped.n_iter_ == int(np.argmin(losses)) + 11
        whole = classifier(early_stopping=True, epochs=30, lr=0.1, batchsize=40).fit(x, y)
        assert whole.n_iter_ == 30

    def test_is_automatic_for_many_samples(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((10_001, 2, 1)).astype(np.float32)
        options = {"epochs": 1, "batchsize": 512, "hidden_size": 1, "random_state": 0}
        for count, on in [(10_001, True), (10_000, False)]:
            model = SequenceRegressor("gru", **options).fit(x[:count], x[:count, 0, 0])
            assert ("validation_loss" in model.history_[0]) == on
            off = SequenceRegressor("gru", early_stopping=False, **options)
            off.fit(x[:count], x[:count, 0, 0])
            assert "validation_loss" not in off.history_[0]
        model.partial_fit(x, x[:, 0, 0])
        assert "validation_loss" not in model.history_[-1]
        many = SequenceClassifier("gru", **options).fit(x, np.arange(10_001) // 4)  # 2501 classes
        assert "validation_loss" in many.history_[0]

    def test_updates_count_what_is_trained_on(self):
        x, y = data(400)
        options = {"epochs": None, "validation_fraction": 0.5, "batchsize": 200, "module": "linear"}
        model = classifier(early_stopping=True, **options).fit(x, y)  # one update an epoch
        assert model.n_iter_ == 600

    def test_warns_of_too_few_samples(self):
        x, y = data(60)
        with pytest.warns(UserWarning, match="only . samples of one class"):
            classifier(early_stopping=True).fit(x, y)
        with pytest.warns(UserWarning, match="only 6 samples"):
            SequenceRegressor("gru", early_stopping=True, epochs=8, batchsize=4).fit(x, x[:, 0, 0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SequenceRegressor("gru", epochs=8, batchsize=4).fit(x, x[:, 0, 0])

    def test_other_values_are_refused(self):
        x, y = data()
        with pytest.raises(ValueError, match="early_stopping must be"):
            classifier(early_stopping="yes").fit(x, y)
