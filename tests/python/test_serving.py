"""The server's answers are the model's, and what clients send wrongly is refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
import torch
from starlette.testclient import TestClient
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.serving import make_app

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 9, 3)).astype(np.float32)
Y = np.where(X.sum((1, 2)) > 0, "up", "down")
DAYS = pd.date_range("2024-01-01", periods=60, freq="D")


def post(server: TestClient, path: str = "/predict", **body: object) -> object:
    answer = server.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def detail(server: TestClient, path: str = "/predict", status: int = 422, **body: object) -> str:
    answer = server.post(path, json=body)
    assert answer.status_code == status
    return answer.json()["detail"]


@pytest.fixture(scope="module")
def classifier():
    return fs.SequenceClassifier("gru", epochs=2, random_state=0).fit(X, Y)


@pytest.fixture
def served(classifier):
    with TestClient(make_app(classifier)) as client:
        yield client


def test_a_classifier(classifier, served):
    assert served.get("/health").json() == {"status": "ok"}
    described = served.get("/metadata").json()
    assert described["model"] == "SequenceClassifier"
    assert described["classes"] == ["down", "up"]
    found = post(served, records=X[:5].tolist())
    assert found["predictions"] == classifier.predict(X[:5]).tolist()
    assert found["classes"] == classifier.classes_.tolist()
    assert found["probabilities"] == classifier.predict_proba(X[:5]).tolist()


def test_sequences_of_different_lengths(classifier, served):
    records = [x[: 3 + n] for n, x in enumerate(X[:5])]
    found = post(served, records=[x.tolist() for x in records])
    wanted = np.concatenate([classifier.predict_proba([x]) for x in records])
    np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"records": []}, "records must not be empty"),
        ({"records": [[[1, 2]]]}, "records.0.0 must have 3 values, got 2"),
        ({"records": [[[1, 2, 3, 4]]]}, "records.0.0 must have 3 values, got 4"),
        ({"records": [[]]}, "records.0 must not be empty"),
        ({"records": [[["1", 2, 3]]]}, "records.0.0.0: Input should be a valid number"),
        ({"records": [[[True, 2, 3]]]}, "records.0.0.0: Input should be a valid number"),
        (
            {"records": [[[None, 2, 3]]]},
            "records.0.0.0 is null, but the model takes no missing values",
        ),
        (
            {"records": [[[1e39, 2, 3]]]},
            "records.0.0.0: Input should be less than or equal to 340282",
        ),
        ({"record": []}, "records: Field required"),
        ({"records": [[[1, 2, 3]]], "more": 1}, "more: Extra inputs are not permitted"),
        ({"records": [[[1, 2, 3]]], "static": [[1]]}, "static: Extra inputs"),
    ],
)
def test_what_the_model_does_not_take(served, given, said):
    assert said in detail(served, **given)


def test_other_paths_say_which_there_are(served):
    answer = served.post("/step", json={})
    assert answer.status_code == 404
    said = "this model has no /step, but /health, /metadata, /predict: see /docs"
    assert answer.json() == {"detail": said}
    assert served.get("/", follow_redirects=False).headers["location"] == "docs"


def test_bodies_that_are_no_json(served):
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b"", b"[" * 100_000, b"\xff", b'{"records": [[[NaN, 1, 2]]]}'):
        answer = served.post("/predict", content=body, headers=headers)
        assert answer.status_code in (400, 422)
        assert "\n" not in answer.json()["detail"]
    answer = served.post("/predict", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.json()["detail"].startswith("send JSON, with Content-Type: application/json")


def test_one_record_that_fails_does_not_fail_others():
    """Both wait together; one has numbers that are too large when scaled."""
    from concurrent.futures import ThreadPoolExecutor

    wrong = [[[3e38, 0, 0]] * 9]
    classifier = fs.SequenceClassifier("gru", epochs=1, scale_x="standard", random_state=0)
    classifier.fit(X / 1000, Y)
    with TestClient(make_app(classifier)) as client, ThreadPoolExecutor(8) as pool:
        bodies = [X[:1].tolist(), wrong] * 12
        answers = list(
            pool.map(lambda records: client.post("/predict", json={"records": records}), bodies)
        )
    wanted = classifier.predict_proba(X[:1])
    for good, bad in zip(answers[::2], answers[1::2], strict=True):
        np.testing.assert_allclose(good.json()["probabilities"], wanted, atol=1e-6)
        assert bad.status_code == 422


def test_missing_values_are_null():
    x = X.copy()
    x[0, 2, 1] = np.nan
    model = fs.SequenceRegressor("gru", epochs=1, nan="mask", random_state=0)
    model.fit(x, np.nan_to_num(x).sum((1, 2)))
    rows = np.where(np.isnan(x[:2]), None, x[:2].astype(object)).tolist()
    with TestClient(make_app(model)) as client:
        found = post(client, records=rows)
    np.testing.assert_allclose(found["predictions"], model.predict(x[:2]), rtol=1e-6)


def test_a_table_with_categories_and_static_features():
    table = pd.DataFrame({"a": RNG.standard_normal(40), "c": ["u", "v", None, "u"] * 10})
    model = fs.SequenceRegressor("mlp", epochs=1, random_state=0, nan="mask")
    model.fit(table, RNG.standard_normal(40))
    rows = [{"a": 0.5, "c": "u"}, {"a": None, "c": "new"}, {"a": 1, "c": None}]
    with TestClient(make_app(model)) as client:
        found = post(client, records=rows)
        assert "records.0.c: Field required" in detail(client, records=[{"a": 0.5}])
        assert "Input should be a valid number" in detail(client, records=[{"a": "u", "c": "u"}])
    np.testing.assert_allclose(found["predictions"], model.predict(pd.DataFrame(rows)), rtol=1e-6)

    static = pd.DataFrame({"kind": ["u", "v"] * 20, "size": RNG.standard_normal(40)})
    model = fs.SequenceClassifier("gru", epochs=1, random_state=0).fit(X, Y, static=static)
    beside = static[:3].to_dict("records")
    with TestClient(make_app(model)) as client:
        found = post(client, records=X[:3].tolist(), static=beside)
        assert "static: Field required" in detail(client, records=X[:3].tolist())
        said = detail(client, records=X[:3].tolist(), static=beside[:2])
        assert said == "static has 2 rows, but there are 3 records"
    assert found["probabilities"] == model.predict_proba(X[:3], static=static[:3]).tolist()


def test_unseen_categories_are_logged(caplog, recwarn):
    table = pd.DataFrame({"a": RNG.standard_normal(40), "c": ["u", "v"] * 20})
    model = fs.SequenceRegressor("mlp", epochs=1, random_state=0)
    model.fit(table, RNG.standard_normal(40))
    with TestClient(make_app(model)) as client:
        for new in ("w", "x" * 10_000):
            post(client, records=[{"a": 0.5, "c": new}])
    said = [one.message for one in caplog.records if one.name == "fastseq.serving.batcher"]
    assert "in column 'c' 'w' (it saw 'u', 'v')" in said[0]
    assert "'xxx" in said[1]
    assert len(said[1]) < 300
    # Python would keep each text
    assert not [one for one in recwarn if "categories" in str(one.message)]


FORMS = {
    "one feature, flat": (X[..., 0], Y, X[:2, :, 0].tolist()),
    "one feature": (X[..., :1], Y, X[:2, :, :1].tolist()),
    "per step": (X, np.where(X.sum(2) > 0, "+", "-"), X[:2].tolist()),
    "several targets": (X, np.stack([Y, Y[::-1]], 1), X[:2].tolist()),
    "labels": (X, RNG.integers(0, 2, (40, 3)), X[:2].tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_inputs_and_targets(form):
    x, y, records = FORMS[form]
    more = {"loss": "binary_cross_entropy"} if form == "labels" else {}
    model = fs.SequenceClassifier("gru", epochs=1, random_state=0, **more).fit(x, y)
    with TestClient(make_app(model)) as client:
        found = post(client, records=records)
    assert found["predictions"] == model.predict(x[:2]).tolist()
    if form != "several targets":
        assert found["probabilities"] == model.predict_proba(x[:2]).tolist()


def test_channels_first_and_images():
    model = fs.SequenceClassifier("gru", epochs=1, channels_first=True, random_state=0)
    model.fit(X.swapaxes(1, 2), Y)
    with TestClient(make_app(model)) as client:
        found = post(client, records=X[:2].swapaxes(1, 2).tolist())
    assert found["probabilities"] == model.predict_proba(X[:2].swapaxes(1, 2)).tolist()
    images = RNG.random((40, 8, 7)).astype(np.float32)
    model = fs.SequenceClassifier("cnn", epochs=1, random_state=0).fit(images[..., None], Y)
    with TestClient(make_app(model)) as client:
        found = post(client, records=images[:2, ..., None].tolist())
        assert "must have 8 values, got 7" in detail(
            client, records=images[:2, :7, :, None].tolist()
        )
    assert found["probabilities"] == model.predict_proba(images[:2, ..., None]).tolist()


def estimator(model: nn.Module, size: float = 1.0) -> fs.Estimator:
    x = torch.randn(30, 8, 3, generator=torch.Generator().manual_seed(0)) * size
    spec = {
        "epochs": 1,
        "batchsize": 4,
        "seqsize": 10,
        "scale_x": "standard",
        "scale_y": "standard",
    }
    est = fs.Estimator(model, fs.seqloss(mse_loss), torch.optim.SGD, spec, progress=False)
    return est.fit(x, x[..., :1])


@pytest.fixture(scope="module")
def stateful():
    torch.manual_seed(0)
    return estimator(fs.nn.Chain(fs.nn.LSTM(3, 8), fs.nn.GRU(8, 5), nn.Linear(5, 1)))


def test_whole_series_of_an_estimator(stateful):
    x = torch.randn(7, 3, 3)
    with TestClient(make_app(stateful)) as client:
        found = post(client, records=[x[:, 0].tolist(), x[:4, 1].tolist()])
    wanted = stateful.predict(x)
    np.testing.assert_allclose(found["predictions"][0], wanted[:, 0], atol=1e-6)
    np.testing.assert_allclose(found["predictions"][1], wanted[:4, 1], atol=1e-6)


def test_steps_of_clients_are_those_of_their_own_series(stateful):
    """Clients start at different times; each gets what `predict` returns for its series."""
    x = torch.randn(12, 5, 3)
    wanted = stateful.predict(x)
    with TestClient(make_app(stateful)) as client:
        for turn in range(16):
            for n in range(5):
                if 0 <= (step := turn - n) < 12:
                    found = post(client, "/step", client=f"c{n}", step=step, x=x[step, n].tolist())
                    np.testing.assert_allclose(found["outputs"], wanted[step, n], atol=1e-6)


def test_steps_that_do_not_follow():
    stateful = estimator(fs.nn.Chain(fs.nn.LSTM(3, 8), nn.Linear(8, 1)), size=1e-3)
    x = torch.randn(5, 3).tolist()
    with TestClient(make_app(stateful, clients=2, idle=1000)) as client:
        first = post(client, "/step", client="a", step=0, x=x[0])
        second = post(client, "/step", client="a", step=1, x=x[1])
        # sent again, as the answer was lost: the same answer, and the state stays
        assert post(client, "/step", client="a", step=1, x=x[1]) == second
        said = detail(client, "/step", 409, client="a", step=1, x=x[2])
        assert "must send step 2 next, got step 1" in said
        assert "next, got step 3" in detail(client, "/step", 409, client="a", step=3, x=x[3])
        assert "start with step 0" in detail(client, "/step", 409, client="b", step=3, x=x[3])
        assert post(client, "/step", client="a", step=0, x=x[0]) == first  # a new series
        post(client, "/step", client="b", step=0, x=x[0])
        said = detail(client, "/step", 503, client="c", step=0, x=x[0])
        assert said == "there are 2 clients already: try later"
        # a first step that fails takes no room, and a restart that fails ends nothing
        assert client.delete("/clients/b").status_code == 204
        detail(client, "/step", client="bad", step=0, x=[1e38, 1e38, 3e38])
        detail(client, "/step", client="a", step=0, x=[1e38, 1e38, 3e38])
        post(client, "/step", client="a", step=1, x=x[1])
        post(client, "/step", client="b/c", step=0, x=x[0])
        assert client.delete("/clients/b/c").status_code == 204
        post(client, "/step", client="b", step=0, x=x[0])
        assert client.delete("/clients/b").status_code == 204
        assert client.delete("/clients/b").status_code == 404
        post(client, "/step", client="c", step=0, x=x[0])
        assert "client: String should have at least 1" in detail(
            client, "/step", client="", step=0, x=x[0]
        )
    with TestClient(make_app(stateful, clients=1, idle=0)) as client:
        post(client, "/step", client="a", step=0, x=x[0])
        post(client, "/step", client="b", step=0, x=x[0])  # takes the room of one that is idle
        assert "no series here" in detail(client, "/step", 409, client="a", step=1, x=x[1])


class Remembers(nn.Module):
    """Returns the mean of all inputs so far: its state grows."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.ones(()))

    def forward(self, x, state=None):
        seen = x if state is None else torch.cat([state.transpose(0, 1), x])
        totals = seen.cumsum(0)[-len(x) :]
        count = torch.arange(len(seen) - len(x), len(seen)).add(1).view(-1, 1, 1)
        return self.size * (totals / count)[..., :1], seen.transpose(0, 1)


def test_states_that_grow(stateful):
    est = fs.Estimator(
        Remembers(), fs.seqloss(mse_loss), torch.optim.SGD, {"epochs": 1, "batchsize": 8, "seqsize": 30},
        progress=False,
    )  # fmt: skip
    est._learner.example = torch.zeros(2, 1, 3)
    x = torch.randn(6, 2, 3)
    with TestClient(make_app(est)) as client:
        for step in range(6):
            for n in range(2):
                if step < 4 or n:
                    found = post(client, "/step", client=str(n), step=step, x=x[step, n].tolist())
                    mean = x[: step + 1, n, 0].mean()
                    np.testing.assert_allclose(found["outputs"], [mean], atol=1e-6)


@pytest.mark.filterwarnings("ignore:the model has a bidirectional layer")
def test_a_bidirectional_model_has_no_steps():
    est = estimator(fs.nn.Chain(fs.nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1)))
    with TestClient(make_app(est)) as client:
        assert client.get("/metadata").json()["steps"] is False
        assert client.post("/step", json={}).status_code == 404


def frame() -> pd.DataFrame:
    parts = [
        pd.DataFrame({"unique_id": name, "ds": DAYS, "y": np.sin(np.arange(60) / 7 * 6.28) * size})
        for size, name in enumerate(["a", "b", "c"], 1)
    ]
    return pd.concat(parts)


def test_forecasts_by_id():
    model = fs.SequenceForecaster(7, epochs=2, random_state=0, quantiles=(0.1, 0.5)).fit(frame())
    whole = model.predict()
    with TestClient(make_app(model)) as client:
        assert client.get("/series").json() == {"ids": ["a", "b", "c"]}
        found = post(client, "/forecasts", ids=["c", "a"])["forecasts"]
        assert [one["id"] for one in found] == ["c", "a"]
        for one in found:
            rows = whole[whole["unique_id"] == one["id"]]
            assert one["times"] == [time.isoformat() for time in rows["ds"]]
            assert one["values"]["q0.1"] == rows["q0.1"].tolist()
        longer = post(client, "/forecasts", horizon=10)["forecasts"]
        wanted = model.predict(horizon=10)["q0.5"].tolist()
        assert [v for one in longer for v in one["values"]["q0.5"]] == wanted
        assert "there is no series 'x'" in detail(client, "/forecasts", ids=["x"])
        assert "less than or equal to 70" in detail(client, "/forecasts", horizon=71)
        new = np.cos(np.arange(50) / 7 * 6.28)
        found = post(client, records=[new.tolist()])["predictions"]
        np.testing.assert_allclose(found, model.predict([new]), rtol=1e-6)


def test_forecasts_with_covariates():
    data = frame().assign(promotion=np.tile(np.arange(60) % 3 == 0, 3).astype(float))
    model = fs.SequenceForecaster(5, epochs=2, random_state=0).fit(data)
    ahead = pd.date_range(DAYS[-1], periods=6, freq="D")[1:]
    rows = pd.DataFrame({
        "unique_id": np.repeat(["a", "b", "c"], 5), "ds": np.tile(ahead, 3),
        "promotion": np.tile([1.0, 0, 0, 1, 0], 3),
    })  # fmt: skip
    texts = rows.assign(ds=rows["ds"].dt.strftime("%Y-%m-%d")).to_dict("records")
    with TestClient(make_app(model)) as client:
        found = post(client, "/forecasts", future=texts)["forecasts"]
        got = [v for one in found for v in one["values"]["forecast"]]
        assert got == model.predict(None, rows)["forecast"].tolist()
        assert detail(client, "/forecasts")  # they are needed
        wrong = [{**texts[0], "price": 1.0}]
        assert "'price', which fit did not get" in detail(client, "/forecasts", future=wrong)
        wrong = [{"ds": "2024-03-01", "promotion": 1.0}]
        assert "needs 'unique_id'" in detail(client, "/forecasts", future=wrong)
        wrong = [{**texts[0], "unique_id": "x"}]
        assert "no series 'x'" in detail(client, "/forecasts", future=wrong)
        wrong = [{**texts[0], "promotion": 10**400}, {**texts[1], "promotion": 0.5}]
        assert "number in 'promotion' that is too large" in detail(
            client, "/forecasts", future=wrong
        )
        assert client.post("/predict", json={"records": [[1.0]]}).status_code == 404


def test_series_without_ids_or_times():
    series = [np.sin(np.arange(60) / 5), np.cos(np.arange(50) / 5)]
    model = fs.SequenceForecaster(4, epochs=2, random_state=0).fit(series)
    with TestClient(make_app(model)) as client:
        found = post(client, "/forecasts", ids=[1])["forecasts"]
    (one,) = found
    assert one["times"] is None
    np.testing.assert_array_equal(one["values"]["forecast"], model.predict()[1])


def test_bounds_on_requests(classifier):
    with TestClient(make_app(classifier, most_bytes=1000)) as client:
        said = detail(client, status=413, records=X[:40].tolist())
        assert said == "the request's body has more than 1000 bytes: send fewer records"
        # without a length, in parts
        answer = client.post(
            "/predict", content=iter([b"x" * 600] * 4), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        post(client, records=X[:1, :2].tolist())
    app = make_app(classifier, hosts=["localhost"])
    with TestClient(app, base_url="http://evil.example") as client:
        answer = client.get("/health")
    assert answer.status_code == 400
    assert answer.json() == {"detail": "this server is not called 'evil.example'"}
    with TestClient(app, base_url="http://localhost:8000") as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (fs.SequenceClassifier(), ValueError, "needs a fitted model: call fit"),
        (nn.Linear(1, 1), TypeError, "got Linear"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_cannot_be_served(model, error, said):
    with pytest.raises(error, match=said):
        make_app(model)
    untrained = fs.Estimator(
        nn.Linear(3, 1), fs.seqloss(mse_loss), torch.optim.SGD,
        {"epochs": 1, "batchsize": 1, "seqsize": 1}, progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs a fitted model of one input array"):
        make_app(untrained)


class Words(nn.Module):
    """Looks ids up: they must arrive as they are."""

    num_embeddings = 2**25

    def __init__(self, n_in: int = 1, n_out: int = 1) -> None:  # noqa: ARG002
        super().__init__()
        self.size = nn.Parameter(torch.ones(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.int64
        return self.size * (x % 2)


def test_categories_of_numbers_and_booleans():
    table = pd.DataFrame({
        "n": pd.Categorical([3, 1, 2, 1] * 10), "b": [True, False] * 20,
        "x": RNG.standard_normal(40),
    })  # fmt: skip
    model = fs.SequenceClassifier("mlp", epochs=3, random_state=0).fit(table, Y)
    rows = [{"n": 1, "b": True, "x": 0.5}, {"n": 3, "b": False, "x": 0.5}]
    with TestClient(make_app(model)) as client:
        found = post(client, records=rows)
        assert "valid boolean, got 1" in detail(client, records=[{**rows[0], "b": 1}])
        assert "valid number, got '1'" in detail(client, records=[{**rows[0], "n": "1"}])
    like = pd.DataFrame(rows).assign(n=pd.Categorical([1, 3]))
    assert found["probabilities"] == model.predict_proba(like).tolist()
    days = pd.Categorical(pd.to_datetime(["2020-01-01", "2021-01-01"] * 20))
    model = fs.SequenceClassifier("mlp", epochs=1, random_state=0).fit(table.assign(n=days), Y)
    with pytest.raises(ValueError, match="column 'n' has categories of Timestamp, which JSON"):
        make_app(model)


def test_labels_that_are_dates():
    days = np.where(Y == "up", np.datetime64("2024-01-01"), np.datetime64("2024-06-01"))
    model = fs.SequenceClassifier("gru", epochs=1, random_state=0).fit(X, days)
    with TestClient(make_app(model)) as client:
        found = post(client, records=X[:3].tolist())
    assert found["classes"] == ["2024-01-01", "2024-06-01"]
    assert found["predictions"] == model.predict(X[:3]).astype("M8[D]").astype(str).tolist()


def test_one_long_record_beside_many_short_ones(stateful):
    """Nothing is padded to the longest: that would be 20 GB here."""
    records = [[[0.0, 0, 0]]] * 3000 + [[[0.0, 0, 0]] * 3000] * 2
    with TestClient(make_app(stateful, batchsize=4096, timeout=300)) as client:
        found = post(client, records=records)["predictions"]
    assert [len(one) for one in found] == [1] * 3000 + [3000] * 2


def test_ids_of_series_that_differ_by_type_alone():
    data = {1.5: np.arange(40.0), "1.5": np.arange(40.0)}
    model = fs.SequenceForecaster(3, epochs=1, random_state=0).fit(data)
    with pytest.raises(ValueError, match="must be different texts or integers"):
        make_app(model)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"timeout": 0}, ValueError), ({"timeout": float("nan")}, ValueError),
        ({"timeout": "x"}, ValueError), ({"idle": -1}, ValueError), ({"clients": 0}, ValueError),
        ({"hosts": "localhost"}, TypeError), ({"batchsize": 0}, ValueError),
        ({"most_bytes": 1.5}, TypeError),
    ],
)  # fmt: skip
def test_arguments_are_checked(classifier, given, error):
    with pytest.raises(error, match=next(iter(given))):
        make_app(classifier, **given)


def test_ids_arrive_exactly():
    ids = np.array([[2**24 + 1, 2], [4, 6], [1, 2**24 + 3], [2, 2]])
    model = fs.SequenceRegressor(Words, epochs=1, random_state=0, scale_y=None)
    model.fit(ids, ids[:, -1] % 2.0)
    with TestClient(make_app(model)) as client:
        found = post(client, records=ids.tolist())
        assert "less than 33554432" in detail(client, records=[[2**25, 1]])
        assert "valid integer" in detail(client, records=[[1.0, 2]])
    np.testing.assert_allclose(found["predictions"], model.predict(ids))
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 2}
    est = fs.Estimator(Words(), fs.seqloss(mse_loss), torch.optim.SGD, spec, progress=False)
    x = torch.from_numpy(ids.T)[..., None]
    est.fit(x, (x % 2).float())
    with TestClient(make_app(est)) as client:
        found = post(client, "/step", client="a", step=0, x=[2**24 + 1])
        whole = post(client, records=[[[2**24 + 1], [4]]])
    assert found["outputs"] == est.predict(x)[0, 0].tolist()
    assert whole["predictions"][0][0] == found["outputs"]
