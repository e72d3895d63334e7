"""Prints the tables that the README takes from ``bench/results``: python bench/figures.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS = "allreduce_, allocated memory"
SIZES = {"64 KiB": "64", "1 MiB": "1024", "25 MiB": "25600", "128 MiB": "131072"}
AGAINST = {
    "`MPI_Allreduce`, then scaling": "MPI_Allreduce, scaling",
    "torch's gloo, then scaling": "gloo, scaling",
    "`memcpy` of as many bytes": "memcpy on one rank",
}


def contenders(name: str) -> dict[str, dict[str, Any]]:
    """Return a bench's rows by case."""
    cases = json.loads((RESULTS / f"{name}.json").read_text())["cases"]
    return {case["case"]: case["contenders"] for case in cases}


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


if __name__ == "__main__":
    print(allreduce_table(), step_table(), hosts_sentence(), sep="\n\n")
