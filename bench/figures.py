"""Makes what the README takes from ``bench/results``.

python bench/figures.py          prints it
python bench/figures.py --write  puts it into README.md, in place of what is there
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
OURS = "allreduce_, allocated memory"
SIZES = {"64 KiB": "64", "1 MiB": "1024", "25 MiB": "25600", "128 MiB": "131072"}
AGAINST = {
    "`MPI_Allreduce`, then scaling": "MPI_Allreduce, scaling",
    "torch's gloo, then scaling": "gloo, scaling",
    "`memcpy` of as many bytes": "memcpy on one rank",
}
PEERS = {
    "a loop written by hand": "plain loop",
    "skorch": "skorch",
    "Lightning, truncated as its documentation shows": "Lightning",
    "Lightning, a chunk per batch": "Lightning, automatic",
}
THREADS = (1, 2)


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


def fit_table() -> str:
    """Set a step of `fit` beside one of others."""
    lines = [
        "| model, batchsize x seqsize | `fit`, its time ÷ that of | 1 thread | 2 threads |",
        "|---" * 4 + "|",
    ]
    for task, rows in fit_cases().items():
        model = task.replace(" batchsize ", " ").replace(", seqsize ", " x ")
        for label, name in PEERS.items():
            if name in rows[0]:
                cells = []
                for row in rows:
                    marks = {m["against"]: m for m in row["fit"]["marks"]}
                    cells.append(f"{marks[name]['ratio']:.2f}")
                lines.append(f"| {model} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fit_sentence() -> str:
    """Tell what `fit` costs with modules that are none of ours."""
    small = next(iter(fit_cases().values()))
    ratio = small[0]["fit, torch.nn.LSTM"]["ratio"]
    return f"a step of `fit` costs {ratio:.2f} times one of the loop"


def recurrent_table() -> str:
    """Set the times of the recurrent layers beside those of torch's."""
    cells: dict[str, dict[str, list[str]]] = {}
    for case, rows in contenders("recurrent").items():
        found = re.fullmatch(r"(\w+) \((.*)\), (.*), \d thread\(s\)", case)
        assert found, case
        kind, shape, what = found.groups()
        ratio = rows[f"fastseq.nn.{kind}"]["ratio"]
        cells.setdefault(shape, {}).setdefault(f"{kind}, {what}", []).append(f"{ratio:.2f}")
    columns = [
        f"{kind}, {what}" for kind in ("LSTM", "GRU") for what in ("forward", "forward + backward")
    ]
    lines = [f"| F, H, N, S | {' | '.join(columns)} |", "|---" * 5 + "|"]
    for shape, row in cells.items():
        lines.append(f"| {shape} | {' | '.join(' / '.join(row[c]) for c in columns)} |")
    return "\n".join(lines)


def allreduce_table() -> str:
    """Set times of averaging on 2 ranks beside others'."""
    rows = contenders("allreduce_2")
    lines = [f"| fp32, its time ÷ that of | {' | '.join(SIZES)} |", "|---" * 5 + "|"]
    for label, name in AGAINST.items():
        cells = []
        for kib in SIZES.values():
            case = rows[f"{kib} KiB, float32, 2 ranks, shm"]
            ratio = case[OURS]["median_us"] / case[name]["median_us"]
            cells.append(f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.3f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_table() -> str:
    """Set what averaging adds to a training step beside what DDP adds."""
    lines = [
        "| a training step, seqsize x batch | what it adds ÷ what DDP (gloo) adds |",
        "|---|---|",
    ]
    for case, rows in contenders("step_2").items():
        mark = next(m for m in rows["Bucketizer"]["marks"] if m["against"] == "what DDP adds")
        lines.append(f"| {case.removesuffix(', 2 ranks')} | {mark['ratio']:.2f} |")
    return "\n".join(lines)


def hosts_sentence() -> str:
    """Tell times between two hosts as multiples of one way on the bare wire."""
    (rows,) = (r for case, r in contenders("hosts_best").items() if case.startswith("25 MiB"))
    wire = rows["one way, rank to rank"]["median_us"]
    full, half = (
        rows[name]["median_us"] / wire for name in ("hierarchy", "hierarchy, bf16 on the wire")
    )
    return f"{full:.2f} times as long as one way of them on the bare wire, and {half:.2f} times"


TABLES = (fit_table, recurrent_table, allreduce_table, step_table)
SENTENCES = (fit_sentence, hosts_sentence)


def updated(text: str) -> str:
    """Return `text` with the figures of ``bench/results`` in its tables and sentences."""
    for make in (*TABLES, *SENTENCES):
        new = make()
        if make in TABLES:  # what begins with the same line
            old = re.escape(new.splitlines()[0]) + r"(\n\|.*)*"
        else:  # the same with other numbers, on lines broken elsewhere
            old = re.sub(r"\d+\\\.\d+", r"[\\d.]+", re.escape(new)).replace(r"\ ", r"\s")
        text, count = re.subn(old, lambda _, new=new: new, text)
        if count != 1:
            raise SystemExit(f"README.md has {count} places for this, not one:\n{new}")
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(updated(README.read_text()))
    else:
        print(*(make() for make in (*TABLES, *SENTENCES)), sep="\n\n")
