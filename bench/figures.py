"""Makes the tables and sentences of the README and the guides from ``bench/results``.

python bench/figures.py          prints them
python bench/figures.py --write  replaces those in the documents
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
BENCHMARKS = HERE.parent / "docs" / "benchmarks.md"
ESTIMATOR = HERE.parent / "docs" / "estimator.md"
LARGE_DATA = HERE.parent / "docs" / "large-data.md"
FORECASTING = HERE.parent / "docs" / "forecasting.md"
SERVING = HERE.parent / "docs" / "serving.md"
PROMISES = HERE.parent / "docs" / "promises.md"
CLASSIFICATION = HERE.parent / "docs" / "classification.md"
OURS = "allreduce_, allocated memory"
SIZES = {"64 KiB": "64", "1 MiB": "1024", "25 MiB": "25600", "128 MiB": "131072"}
AGAINST = {
    "`MPI_Allreduce`, then scaling": "MPI_Allreduce, scaling",
    "torch's gloo, then scaling": "gloo, scaling",
    "`memcpy` of as many bytes": "memcpy on one rank",
}
PEERS = {
    "a loop written by hand": "plain loop",
    "`torch.compile` of it": "plain loop, torch.compile",
    "skorch": "skorch",
    "Lightning, as its page on truncation shows": "Lightning",
    "Lightning, a chunk per batch": "Lightning, automatic",
}
THREADS = (1, 2)
Make = Callable[[], str]


def faster(ratio: float) -> str:
    """Write a ratio of times as how many times faster that is, to two digits or three."""
    times = 1 / ratio
    return f"{times:.0f}×" if times >= 10 else f"{times:.1f}×" if times >= 1.05 else f"{times:.2f}×"


def contenders(name: str) -> dict[str, dict[str, Any]]:
    """Return a bench's rows by case."""
    cases = json.loads((RESULTS / f"{name}.json").read_text())["cases"]
    return {case["case"]: case["contenders"] for case in cases}


def fit_cases() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each task, for 1 and 2 threads."""
    rows = contenders("fit")
    tasks = dict.fromkeys(case.split(" of ", 1)[1].rsplit(", ", 1)[0] for case in rows)
    return {
        task: [
            next(r for case, r in rows.items() if f" of {task}, {n} thread" in case)
            for n in THREADS
        ]
        for task in tasks
    }


def why_table() -> str:
    """Compare with what people would use instead: what there is, and how fast."""
    small = next(iter(fit_cases().values()))[0]

    def slower(name: str) -> str:
        return faster(small["fit"]["ratio"] / small[name]["ratio"])

    weekly = contenders("forecast")["M4 Weekly"]
    ours, nhits = weekly["fastseq"], weekly["NeuralForecast NHITS"]
    ddp = step_ratios()["LSTM, 10 × 20"]
    own, parquet = ["own `Dataset`"] * 3, "Parquet folders"
    times = [slower(name) for name in ("plain loop", "skorch", "Lightning")]
    fits = [f"{row['mase']:.2f}, {row['cpu']:.0f} s" for row in (ours, nhits)]
    rows = [
        ("", "fastseq", "PyTorch loop, DDP", "skorch", "Lightning", "NeuralForecast"),
        ("`fit`, `predict`, as in scikit-learn", "✓", "", "✓", "", "for forecasts"),
        ("truncated back-propagation with carried state", "✓", *["by hand"] * 3, ""),
        ("files larger than memory", "HDF5, Parquet, read ahead", *own, parquet),
        ("same script on several machines", "✓", "own code", "with Accelerate", "✓", "✓"),
        ("killed runs resume bit for bit", "✓", "by hand", *["by epoch"] * 2, ""),
        ("time of a training step, small LSTM", "1×", *times, ""),
        ("overhead of averaging gradients, 2 ranks", "1×", faster(ddp), "", "", ""),
        ("M4 Weekly: MASE, CPU seconds", fits[0], "", "", "", f"{fits[1]} (NHITS)"),
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def fit_table() -> str:
    """Compare an update of `fit` with those of others, on 1 and 2 threads."""
    lines = [
        f"| `fit` is faster than, on 1 / 2 threads | {' | '.join(PEERS)} |",
        "|---" * (1 + len(PEERS)) + "|",
    ]
    for task, rows in fit_cases().items():
        model = task.replace(" batchsize ", " ").replace(", seqsize ", " × ").replace("+", ", ")
        cells = []
        for name in PEERS.values():
            ratios = [row["fit"]["ratio"] / row[name]["ratio"] for row in rows if name in row]
            cells.append(" / ".join(map(faster, ratios)))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fit_sentence() -> str:
    """Compare `fit` with a loop, on the same modules of torch's."""
    small = next(iter(fit_cases().values()))
    ratio = small[0]["fit, torch's layer"]["ratio"]
    return f"an update of `fit` is {faster(ratio)} faster than one of the loop"


def recurrent_table() -> str:
    """Compare the recurrent layers with torch's."""
    cells: dict[str, dict[str, list[str]]] = {}
    for case, rows in contenders("recurrent").items():
        found = re.fullmatch(r"(\w+) \((.*)\), (.*), \d thread\(s\)", case)
        assert found, case
        kind, shape, what = found.groups()
        times = faster(rows[f"fastseq.nn.{kind}"]["ratio"])
        cells.setdefault(shape, {}).setdefault(f"{kind}, {what}", []).append(times)
    columns = [
        f"{kind}, {what}" for kind in ("LSTM", "GRU") for what in ("forward", "forward + backward")
    ]
    lines = [f"| F, H, N, S | {' | '.join(columns)} |", "|---" * 5 + "|"]
    for shape, row in cells.items():
        lines.append(f"| {shape} | {' | '.join(' / '.join(row[c]) for c in columns)} |")
    return "\n".join(lines)


def allreduce_table() -> str:
    """Compare averaging on 2 ranks with other ways to do it."""
    rows = contenders("allreduce_2")
    lines = [f"| fp32, faster than | {' | '.join(SIZES)} |", "|---" * 5 + "|"]
    for label, name in AGAINST.items():
        cells = []
        for kib in SIZES.values():
            case = rows[f"{kib} KiB, float32, 2 ranks, shm"]
            cells.append(faster(case[OURS]["median_us"] / case[name]["median_us"]))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_ratios() -> dict[str, float]:
    """Return what averaging adds to an update, as a part of what DDP adds, by model."""
    ratios = {}
    for case, rows in contenders("step_2").items():
        mark = next(m for m in rows["Bucketizer"]["marks"] if m["against"] == "what DDP adds")
        ratios[case.removesuffix(", 2 ranks").replace(" x ", " × ")] = mark["ratio"]
    return ratios


def step_table() -> str:
    """Compare what averaging adds to an update with what DDP adds."""
    lines = [
        "| model, seqsize × batch | averaging adds less time than DDP (gloo), by |",
        "|---|---|",
    ]
    lines += [f"| {model} | {faster(ratio)} |" for model, ratio in step_ratios().items()]
    return "\n".join(lines)


def amp_sentence() -> str:
    """Compare updates of a large layer in mixed precision with those in single precision."""
    large = [rows for case, rows in contenders("amp").items() if "LSTM(64,256)" in case]
    one, two = (rows["fit, bf16"]["ratio"] / rows["fit"]["ratio"] for rows in large)
    return (
        "on an AMD EPYC with AVX-512 BF16, updates of an LSTM(64,256) are then "
        f"{faster(one)} faster on one thread, {faster(two)} on two"
    )


def hosts_sentence() -> str:
    """Compare averaging between two hosts with sending as much once."""
    (rows,) = (r for case, r in contenders("hosts_best").items() if case.startswith("25 MiB"))
    wire = rows["one way, rank to rank"]["median_us"]
    full, half = (
        rows[name]["median_us"] / wire for name in ("hierarchy", "hierarchy, bf16 on the wire")
    )
    return f"{full:.2f} times as long as sending them once, and with bf16 on the wire {half:.2f}"


def reading_case(begin: str, end: str = "") -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the one case of reading files whose name has this start and end."""
    cases = contenders("reading").items()
    ((case, rows),) = ((c, r) for c, r in cases if c.startswith(begin) and c.endswith(end))
    return case, rows


def reading_table() -> str:
    """Compare ways to read a contiguous file, and memcpy."""
    case, rows = reading_case("contiguous")
    lines = [
        f"| {case.removesuffix(', a block')} | GB/s | fastseq is faster by |",
        "|---" * 3 + "|",
    ]
    for name, row in rows.items():
        times = faster(rows["fastseq"]["median_us"] / row["median_us"])
        lines.append(f"| {name} | {row['gb_per_s']:.2f} | {times} |")
    return "\n".join(lines)


def layouts_table() -> str:
    """Compare passes through files of several layouts."""
    name, rows = reading_case("layouts")
    cases = json.loads((RESULTS / "reading.json").read_text())["cases"]
    size = next(c["size"] for c in cases if c["case"] == name)
    lines = [
        f"| {name.removeprefix('layouts, ')} | GB/s | time relative to contiguous | file size "
        "relative to contiguous |",
        "|---" * 4 + "|",
    ]
    for layout, row in rows.items():
        cells = f"{row['gb_per_s']:.2f} | {row['ratio']:.1f} | {size[layout]:.2f}"
        lines.append(f"| {layout} | {cells} |")
    return "\n".join(lines)


def compressed_table() -> str:
    """Compare passes through compressed chunks with h5py, on one core and on two."""
    cases: dict[str, list[dict[str, Any]]] = {}
    for name, rows in contenders("reading").items():
        if name.startswith("gzip"):
            kind, cores = name.rsplit(", ", 1)
            assert cores == f"{len(cases.setdefault(kind, [])) + 1} core(s)"
            cases[kind].append(rows)
    shape = next(iter(cases)).split("), ", 1)[1]
    lines = [f"| {shape} | h5py, GB/s | fastseq, 1 core | 2 cores |", "|---" * 4 + "|"]
    for kind, on in cases.items():
        reference = on[0]["h5py, each chunk of the file once"]["gb_per_s"]
        ours = (row["fastseq"] for row in on)
        cells = [f"{row['gb_per_s']:.2f}, {faster(row['ratio'])}" for row in ours]
        lines.append(
            f"| {kind.removesuffix(', ' + shape)} | {reference:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def training_sentence() -> str:
    """Compare training from files with training on tensors."""
    plain, packed, both = (
        reading_case(f"training, {kind}", f"{threads} thread(s)")[1]["fit from a file"]["ratio"]
        for kind, threads in (("contiguous", 1), ("gzip", 1), ("gzip", 2))
    )
    return (
        f"An epoch takes {plain:.2f} times as long from a contiguous file as from tensors in "
        f"memory, and {packed:.2f} times from gzip-compressed chunks, if one of two cores is left "
        f"to the reader; if the model computes on both, {both:.2f} times"
    )


def concat_sentence() -> str:
    """Compare joining files by copy with ``cp``."""
    rows = next(rows for rows in contenders("h5").values() if "cp" in rows)
    memory = json.loads((RESULTS / "h5.json").read_text())["circumstances"]["memory_mb"]
    names = [f"h5concat along {what}" for what in ("time", "sequences")]
    time, sequences = (rows[name]["ratio"] for name in names)
    most = max(memory[name] for name in names)
    return (
        f"Copying along time is {faster(time)} faster than `cp`, along sequences "
        f"{faster(sequences)}, and needs {most:.0f} MB of memory"
    )


def wrappers_sentence() -> str:
    """Compare `SequenceRegressor` with its `Estimator`, and a search with skorch's."""
    fits, searches = {}, []
    for case, rows in contenders("wrappers").items():
        ratio = rows["SequenceRegressor"]["ratio"]
        if case.startswith("GridSearchCV"):
            searches.append(ratio)
        else:
            fits["new order" in case] = ratio
    return (
        f"`SequenceRegressor` takes {fits[False]:.2f} times as long as its `Estimator`, and "
        f"{fits[True]:.2f} times if it shuffles samples each epoch. A `GridSearchCV` of 3 folds "
        f"and 4 points is {faster(searches[0])} faster than with skorch"
    )


def checkpoint_sentence() -> str:
    """Compare training with and without checkpoints."""
    (rows,) = contenders("checkpoint").values()
    (ratio,) = (row["ratio"] for name, row in rows.items() if name != "fit")
    return f"training with a checkpoint every 100 updates takes {ratio:.2f} times as long"


def forecast_table() -> str:
    """Compare errors and processor seconds of forecasters on public sets."""
    sets = contenders("forecast")
    names = list(dict.fromkeys(name for rows in sets.values() for name in rows))
    heads = [name.replace("NeuralForecast ", "").replace("statsforecast ", "") for name in names]
    lines = [f"| data set | error | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for case, rows in sets.items():
        scores = ("mase", "smape") if "mase" in rows["fastseq"] else ("mse",)
        for score in scores:
            cells = []
            for name in names:
                row = rows.get(name)
                timed = row is not None and name != "seasonal naive" and score != "smape"
                fit = f", {row['cpu']:.0f} s" if timed else ""
                cells.append("" if row is None else f"{row[score]:.3f}{fit}")
            title = {"mase": "MASE", "smape": "sMAPE", "mse": "MSE"}[score]
            lines.append(f"| {case} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def intervals_table() -> str:
    """Compare how many percent of what came lay within intervals of 80 and of 90 %."""
    kinds = ("uncalibrated", "split", "adaptive")
    lines = [f"| percent within 80 and 90 % | {' | '.join(kinds)} |", "|---" * 4 + "|"]
    for case, rows in contenders("intervals").items():
        cells = [
            f"{rows[kind]['80']:.1f}, {rows[kind]['90']:.1f}" if kind in rows else ""
            for kind in kinds
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def classes_table() -> str:
    """Compare accuracies, and processor seconds, of classifiers on public sets."""
    return _sets_table("accuracy", "accuracy", 3)


def numbers_table() -> str:
    """Compare errors, and processor seconds, of regressors on public sets."""
    return _sets_table("rmse", "root mean squared error", 4)


def _sets_table(score: str, title: str, digits: int) -> str:
    sets = {case: r for case, r in contenders("classify").items() if score in r["fastseq"]}
    names = list(dict.fromkeys(name for rows in sets.values() for name in rows))
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for case, rows in sets.items():
        cells = []
        for row in map(rows.get, names):
            cpu = 0.0 if row is None else row["cpu"]
            seconds = f"{cpu:.0f}" if cpu >= 9.5 else f"{cpu:.1g}"
            cells.append("" if row is None else f"{row[score]:.{digits}f}, {seconds} s")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def serving_table() -> str:
    """Compare servers of the same models: rates, latencies, and how much faster fastseq is."""
    cases = [(case, rows) for case, rows in contenders("serving").items() if len(rows) > 1]
    lines = [
        f"| 64 clients at once | {' | '.join(case.rsplit(',', 1)[0] for case, _ in cases)} |",
        "|---" * (1 + len(cases)) + "|",
    ]
    for name in cases[0][1]:
        cells = []
        for _, rows in cases:
            row, ours = rows[name], rows["fastseq serve"]["ratio"]
            p99 = row["latency_ms"]["p99"]
            times = f"; fastseq is {faster(ours / row['ratio'])} as fast"
            times = "" if name == "fastseq serve" else times
            cells.append(f"{row['requests_per_s']:.0f} per second, p99 {p99:.0f} ms{times}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def serving_sentence() -> str:
    """Say how long many clients wait."""
    *_, (_, rows) = contenders("serving").items()
    row = rows["fastseq serve"]
    return (
        f"With 200 clients at once, the smaller model's server answers {row['requests_per_s']:.0f} "
        f"requests per second, half of them within {row['latency_ms']['median']:.0f} ms, 99 % "
        f"within {row['latency_ms']['p99']:.0f} ms."
    )


def campaigns_table() -> str:
    """List the campaigns: what they tried, how often, and how often a promise was broken."""
    lines = [
        "| campaign | what holds in each case | cases of wanted | minutes | failed |",
        "|---" * 5 + "|",
    ]
    for path in sorted(RESULTS.glob("campaign-*.json")):
        found = json.loads(path.read_text())
        promise = found["promise"].rstrip(".")
        promise = promise[0].lower() + promise[1:]
        cases = f"{found['done']:,} of {found['wanted']:,}".replace(",", " ")
        minutes = f"{found['seconds'] / 60:.0f}"
        row = (found["campaign"], promise, cases, minutes, str(len(found["failures"])))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


PAGES: dict[Path, tuple[tuple[Make, ...], tuple[Make, ...]]] = {
    README: ((why_table,), ()),
    BENCHMARKS: (
        (fit_table, recurrent_table, allreduce_table, step_table),
        (fit_sentence, hosts_sentence, wrappers_sentence, checkpoint_sentence),
    ),
    ESTIMATOR: ((), (amp_sentence,)),
    FORECASTING: ((forecast_table, intervals_table), ()),
    CLASSIFICATION: ((classes_table, numbers_table), ()),
    SERVING: ((serving_table,), (serving_sentence,)),
    PROMISES: ((campaigns_table,), ()),
    LARGE_DATA: (
        (reading_table, layouts_table, compressed_table),
        (training_sentence, concat_sentence),
    ),
}


def broken_alike(new: str, old: str) -> str:
    """Return a sentence with the line breaks of `old`, of as many words; a table unchanged."""
    if new.startswith("|"):
        return new
    spaces = [*re.findall(r"\s", old), ""]
    return "".join(word + space for word, space in zip(new.split(" "), spaces, strict=True))


def updated(page: Path) -> str:
    """Return a page with the figures of ``bench/results`` in its tables and sentences."""
    text = page.read_text()
    tables, sentences = PAGES[page]
    for make in (*tables, *sentences):
        new = make()
        if make in tables:  # what begins with the same line
            old = re.escape(new.splitlines()[0]) + r"(\n\|.*)*"
        else:  # the same with other numbers, on lines broken elsewhere
            old = re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(new)).replace(r"\ ", r"\s")
        text, count = re.subn(old, lambda match, new=new: broken_alike(new, match[0]), text)
        if count != 1:
            raise SystemExit(f"{page.name} has {count} places for this, not one:\n{new}")
    return text


if __name__ == "__main__":
    for page, (tables, sentences) in PAGES.items():
        if sys.argv[1:] == ["--write"]:
            page.write_text(updated(page))
        else:
            print(*(make() for make in (*tables, *sentences)), sep="\n\n")
