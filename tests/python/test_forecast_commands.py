"""fastseq fit and fastseq predict: forecasts from files."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import fastseq as fs
from fastseq.__main__ import main

TIMES = pd.date_range("2015-01-01", periods=72, freq="MS")
SETTINGS = ["--horizon", "6", "--epochs", "2", "--random-state", "0", "--verbose", "0"]


def rows(ids=("007", "NA", "b"), times=TIMES):
    """Seasonal series, a column `price` beside them."""
    steps = np.arange(len(times))
    return pd.concat(
        [
            pd.DataFrame({"unique_id": name, "ds": times, "y": i + np.sin(steps / 2), "price": 1.0 + steps % 5})
            for i, name in enumerate(ids)
        ],
        ignore_index=True,
    )  # fmt: skip


LONG = rows().drop(columns="price")
ONE = LONG[LONG["unique_id"] == "b"].drop(columns="unique_id")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder; return exit code, output, messages."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        out, messages = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(messages):
            try:
                code = main([str(word) for word in words])
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), messages.getvalue()

    return run


def forecaster(**more):
    return fs.SequenceForecaster(6, epochs=2, random_state=0, **more)


def printed(text):
    return pd.read_csv(io.StringIO(text), dtype={"unique_id": str}, keep_default_na=False, parse_dates=["ds"])  # fmt: skip


def test_ids_and_times_of_a_csv_file_are_kept_as_they_are_written(run):
    LONG.to_csv("data.csv", index=False)
    code, out, messages = run("fit", "data.csv", "model.safetensors", *SETTINGS)
    assert (code, out) == (0, "")
    assert "3 series, 216 rows: model.safetensors written" in messages
    code, out, messages = run("predict", "model.safetensors")
    assert (code, messages) == (0, "")
    expected = forecaster().fit(LONG).predict()
    pd.testing.assert_frame_equal(printed(out), expected, check_dtype=False)
    assert sorted(set(printed(out)["unique_id"])) == ["007", "NA", "b"]


def test_a_file_without_ids_is_one_series(run):
    ONE.to_csv("one.csv.gz", index=False)
    assert run("fit", "one.csv.gz", "m.safetensors", *SETTINGS)[0] == 0
    code, out, _ = run("predict", "m.safetensors", "--horizon", 8)
    expected = forecaster().fit(ONE.set_index("ds")["y"]).predict(horizon=8)
    assert code == 0
    np.testing.assert_allclose(printed(out)["forecast"], expected)
    assert printed(out)["ds"].tolist() == expected.index.tolist()


def test_covariates_new_steps_and_other_series(run):
    table = rows(times=pd.date_range("2015-01-01", periods=90, freq="MS"))
    known, new = (
        table[table["ds"] < "2021"],
        table[(table["ds"] >= "2021") & (table["ds"] < "2022")],
    )
    future = table[table["ds"] >= "2021"]
    for name, frame in {"known": known, "new": new, "future": future.drop(columns="y")}.items():
        frame.to_parquet(f"{name}.parquet")
    assert run("fit", "known.parquet", "m.safetensors", *SETTINGS)[0] == 0
    twin = forecaster().fit(known)
    code, out, _ = run("predict", "m.safetensors", "--future", "future.parquet")
    assert code == 0
    pd.testing.assert_frame_equal(
        printed(out), twin.predict(X=future.drop(columns="y")), check_dtype=False
    )
    other = known.assign(unique_id=known["unique_id"] + "x")
    other.to_parquet("other.parquet")
    ahead = future.drop(columns="y").assign(unique_id=future["unique_id"] + "x")
    ahead.to_parquet("ahead.parquet")
    words = ("--future", "ahead.parquet", "--out", "forecast.parquet", "--plot", "picture.png")
    told = "18 rows: forecast.parquet written\n3 of 3 series drawn: picture.png written\n"
    assert run("predict", "m.safetensors", "other.parquet", *words) == (0, "", told)
    expected = twin.predict(other, ahead)
    pd.testing.assert_frame_equal(pd.read_parquet("forecast.parquet"), expected, check_dtype=False)
    with open("picture.png", "rb") as picture:
        assert picture.read(4) == b"\x89PNG"
    table[table["ds"] >= "2022"].drop(columns="y").to_parquet("later.parquet")
    code, out, _ = run(
        "predict", "m.safetensors", "--new", "new.parquet", "--future", "later.parquet"
    )
    assert code == 0
    assert printed(out)["ds"].min() == pd.Timestamp("2022-01-01")
    expected = twin.update(new).predict(X=table[table["ds"] >= "2022"].drop(columns="y"))
    pd.testing.assert_frame_equal(printed(out), expected, check_dtype=False)


def test_a_picture_has_the_first_series_and_what_is_near_their_forecasts(run, monkeypatch):
    figures = []

    def savefig(figure, path, **_):
        figures.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    rows(range(20)).drop(columns="price").to_parquet("data.parquet")
    assert run("fit", "data.parquet", "m.safetensors", *SETTINGS)[0] == 0
    code, _, messages = run("predict", "m.safetensors", "data.parquet", "--plot", "p.png")
    assert (code, messages) == (0, "12 of 20 series drawn: p.png written\n")
    axes = figures[0].axes
    assert [ax.get_title() for ax in axes] == [str(i) for i in range(12)]
    lines = {line.get_label(): len(line.get_ydata()) for line in axes[-1].lines}
    assert (lines["past"], lines["forecast"]) == (36, 6)


def test_one_series_with_covariates(run):
    one = rows(["b"], pd.date_range("2015-01-01", periods=78, freq="MS")).drop(columns="unique_id")
    past, future = one[:72], one[72:].drop(columns="y")
    past.to_csv("past.csv", index=False)
    future.to_csv("future.csv", index=False)
    assert run("fit", "past.csv", "m.safetensors", *SETTINGS)[0] == 0
    x = past.set_index("ds")[["price"]]
    twin = forecaster().fit(past.set_index("ds")["y"], x)
    for words in ((), ("past.csv",)):
        code, out, _ = run("predict", "m.safetensors", *words, "--future", "future.csv")
        assert code == 0
        expected = twin.predict(X=future.set_index("ds"))
        np.testing.assert_allclose(printed(out)["forecast"], expected, rtol=1e-6)


def test_settings_of_a_file_are_overridden_on_the_command_line(run, tmp_path):
    LONG.to_csv("data.csv", index=False)
    (tmp_path / "s.yaml").write_text(
        "horizon: 4\nepochs: 2\nlr: 1e-3\nquantiles: [0.1, 0.5, 0.9]\nclip_norm:\nholidays: none\n"
    )
    words = ("fit", "data.csv", "m.safetensors", "--settings", "s.yaml", "--horizon", "6")
    assert run(*words)[0] == 0
    made = fs.SequenceForecaster.load("m.safetensors")
    assert (made.horizon, made.epochs, made.lr) == (6, 2, 0.001)
    assert (made.quantiles, made.clip_norm, made.holidays) == ([0.1, 0.5, 0.9], None, None)
    assert run(*words[:3], "--settings=s.yaml", "--help")[1].count("(default: 0.001)") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "has no option 'epoch': did you mean \"epochs\"?"),
        ("epochs: many", "epochs must be an integer or none, got 'many'"),
        ("horizon: [3]", "horizon must be an integer, got ['3']"),
        ("quantiles: {a: 1}", "quantiles must be a list such as 0.1,0.9 or none, got {'a': '1'}"),
        ("quantiles: [0.1, [0.2]]", "quantiles must be a list"),
        ("lr: 1\nlr: 2", "'lr' is given twice, again in line 2"),
        ("[1, 2]", "it must have lines such as 'epochs: 20'"),
        ("a: b: c", "is not YAML"),
        ("id_col: shop", "data.csv has no column 'shop' (it has 'unique_id', 'ds', 'y')"),
        ("", "s.yaml: it must have lines such as 'epochs: 20'"),
        ("# horizon: 3\n", "s.yaml: it must have lines such as 'epochs: 20'"),
        ("---", "s.yaml: it must have lines such as 'epochs: 20'"),
        ("decay_biases: no", "decay_biases must be true or false, got 'no'"),
        ("callbacks: !!python/object/apply:os.getcwd []", "has no option 'callbacks'"),
    ],
)
def test_wrong_settings(run, tmp_path, text, message):
    LONG.to_csv("data.csv", index=False)
    (tmp_path / "s.yaml").write_text(text)
    code, out, messages = run("fit", "data.csv", "m.safetensors", "--settings", "s.yaml")
    assert (code, out) == (1, "")
    assert messages.startswith("fastseq: error: ")
    assert message in messages
    assert messages.count("\n") == 1
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.rename(columns={"ds": "time"}),
            "has no column 'ds' (it has 'unique_id', 'time', 'y')",
        ),
        (
            lambda t: t.assign(ds=t["ds"].str.replace("2015-01-01", "31/01/2015")),
            "the time '31/01/2015' in line 2",
        ),
        (
            lambda t: t.assign(unique_id=["", *t["unique_id"].tolist()[1:]]),
            "has no 'unique_id' in line 2",
        ),
        (
            lambda t: t.assign(z=1).set_axis(["unique_id", "ds", "y", "y"], axis=1),
            "has two columns 'y'",
        ),
        (
            lambda t: t.assign(y=["1", "NA", "", "3,5", *t["y"].tolist()[4:]]),
            "data.csv has '3,5' in column 'y' in line 5: values must be numbers, such as 0.5",
        ),
        (lambda t: t.assign(y=t["ds"]), "has '2015-01-01' in column 'y' in line 2"),
        (
            lambda t: t.rename(columns={"unique_id": "shop"}),
            "data.csv has several rows for 2015-01-01 00:00:00, but no column 'unique_id'",
        ),
        (lambda t: t.iloc[:0], "data.csv has no rows"),
        (lambda t: t.set_index(t.index.rename("")).reset_index(), "has a column without a name"),
        (
            lambda t: t.assign(ds=[f"{d}T00:00+0{1 + i % 2}:00" for i, d in enumerate(t["ds"])]),
            "has times with different UTC offsets",
        ),
        (lambda t: t.iloc[[0, 0, 1]], "two rows for 2015-01-01"),
    ],
)
def test_files_that_can_be_misread_are_refused(run, tmp_path, change, message):
    change(LONG.astype({"ds": str})).to_csv("data.csv", index=False)
    code, out, messages = run("fit", "data.csv", "m.safetensors", *SETTINGS)
    assert (code, out) == (1, "")
    assert messages.startswith("fastseq: error: ")
    assert message in messages
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "none.csv", "m.safetensors"), "No such file"),
        (("fit", "none.csv", "m.st"), "No such file"),
        (("fit", "data.csv", "no/m.safetensors"), "there is no folder 'no' for m.safetensors"),
        (("fit", "data.csv", "model.csv"), "a file *.safetensors, got 'model.csv'"),
        (("fit", "comma.csv", "m.safetensors"), "Expected 2 columns, got 3"),
        (("fit", "short.csv", "m.safetensors"), "Expected 3 columns, got 2"),
        (("predict", "m.safetensors", "data.csv", "--out", "data.csv"), "data.csv is also read"),
        (("predict", "m.csv", "--out", "./m.csv"), "m.csv is also read"),
        (("predict", "m.safetensors", "data.csv", "--plot", "p.xyz"), "p.xyz must be a picture"),
        (("fit", "data.csv", "m.safetensors", "--id-col", "id"), "data.csv has no column 'id' (it"),
        (("fit", "data.csv", "m.safetensors", "--id-col=unique-id"), 'did you mean "unique_id"?'),
        (("fit", "one.csv", "m.safetensors", "--id-col", "unique_id"), "has no column 'unique_id'"),
        (("fit", "semi.csv", "m.safetensors"), "semi.csv has semicolons between its columns: write"),
        (("fit", "tabs.csv.gz", "m.safetensors"), "tabs.csv.gz has tabs between its columns: write"),
        (("fit", "no.csv.gz", "m.safetensors"), "no.csv.gz cannot be unpacked: Not a gzipped file"),
        (("fit", "data.csv", "m.safetensors", "--module", "none"), "('segrnn', 'lstm', 'gru', 'rnn'"),
        (("fit", "data.csv", "m.safetensors", "--settings", "wide.yaml"), "wide.yaml is not UTF-8"),
        (("fit", "data.xls", "m.safetensors"), "data.xls must be a file *.csv, *.csv.gz or *.parquet"),
        (("fit", "binary.csv", "m.safetensors"), "is not CSV"),
        (("fit", "data.csv", "m.safetensors", "--settings", "none.yaml"), "No such file"),
        (("predict", "none.safetensors"), "none.safetensors"),
        (("predict", "data.csv"), "data.csv"),
        (("predict", "m.safetensors", "--plot", "p.png"), "give the file of the series"),
        (("predict", "m.safetensors", "data.csv", "--new", "data.csv"), "either data or --new"),
        (("predict", "m.safetensors", "--out", "f.xls"), "f.xls must be a file"),
    ],
)  # fmt: skip
def test_wrong_use_is_told_in_a_line(run, tmp_path, words, message):
    LONG.to_csv("data.csv", index=False)
    ONE.to_csv("one.csv", index=False)
    LONG.to_csv("semi.csv", index=False, sep=";", decimal=",")
    LONG.to_csv("tabs.csv.gz", index=False, sep="\t")
    (tmp_path / "no.csv.gz").write_bytes(b"ds,y\n2025-01-01,3\n")
    (tmp_path / "wide.yaml").write_text("epochs: 1", encoding="utf-16")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "comma.csv").write_text("ds,y\n2025-01-01,3,5\n2025-01-02,3,6\n")
    (tmp_path / "short.csv").write_text("ds,y,x\n2025-01-01,3,5\n2025-01-02,4\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, messages = run(*words)
    assert (code, out) == (1, "")
    assert messages.startswith("fastseq: error: ")
    assert message in messages
    assert messages.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_covariates_are_told_and_are_what_is_written(run):
    table = rows(["b"]).drop(columns="unique_id")
    table["region"] = np.array(["NA", "EU", "1"])[np.arange(72) % 3]
    table.to_csv("data.csv", index=False)
    code, _, messages = run("fit", "data.csv", "m.safetensors", *SETTINGS)
    assert code == 0
    assert "1 series, 72 rows, covariates: price, region (categories): m.saf" in messages
    future = pd.DataFrame({"ds": pd.date_range("2021-01-01", periods=6, freq="MS"), "price": 1.0})
    twin = forecaster().fit(table.set_index("ds")["y"], table.set_index("ds")[["price", "region"]])
    found = []
    for region in ("NA", "EU"):
        future.assign(region=region).to_csv("future.csv", index=False)
        code, out, _ = run("predict", "m.safetensors", "--future", "future.csv")
        found.append(printed(out)["forecast"].to_numpy())
        expected = twin.predict(X=future.assign(region=region).set_index("ds"))
        np.testing.assert_allclose(found[-1], expected, rtol=1e-6)
    assert not np.allclose(*found)


def test_unknown_options_and_abbreviations_are_refused(run):
    for words in (("--horizn", "6"), ("--settin", "s.yaml"), ("--horizon", "six")):
        code, _, messages = run("fit", "data.csv", "m.safetensors", *words)
        assert code == 2
        assert "error: " in messages


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("--horizn", "6"), '--horizn 6: did you mean "--horizon"?'),
        (("--horizn=6", "--quantiles", "0.1,0.9"), '--horizn=6: did you mean "--horizon"?'),
        (("--quantiles", "0.1", "0.9"), "0.9: write a list with commas, --quantiles 0.1,0.9"),
        (("--past", "price", "promo"), "promo: write a list with commas, --past price,promo"),
        (
            ("--warm-start=false",),
            "--warm-start takes no value, got 'false': write --warm-start or",
        ),
        (("--no-decay-biases=yes",), "got 'yes': write --decay-biases or --no-decay-biases"),
        (("--xyz",), "unrecognized arguments: --xyz\n"),
    ],
)
def test_what_a_wrong_option_may_have_meant(run, words, advice):
    code, out, messages = run("fit", "data.csv", "m.safetensors", *words)
    assert (code, out) == (2, "")
    assert advice in messages
    if words[0] == "--quantiles":  # then the names of the files are in the wrong places
        messages = run("fit", *words, "data.csv", "m.safetensors")[2]
        assert "m.safetensors: write a list with commas, --quantiles 0.1,0.9" in messages


def test_the_console_script():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="fastseq")
    assert script.load() is main


def test_the_version(run):
    assert run("--version")[:2] == (0, f"fastseq {fs.__version__}\n")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz"])
def test_damaged_tables_are_refused_with_their_names(run, tmp_path, name):
    """Arrow says what is wrong, but not in which file."""
    path = tmp_path / name
    LONG.to_parquet(path) if name.endswith("parquet") else LONG.to_csv(path, index=False)
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:30] + bytes(20) + whole[50:], b"x"):
        path.write_bytes(damaged)
        code, _, message = run("fit", path, "model.safetensors", *SETTINGS)
        assert code == 1
        assert message.startswith(f"fastseq: error: {path} ")
        assert message.count("\n") == 1
