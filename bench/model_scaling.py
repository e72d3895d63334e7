"""Predicts what averaging costs on 1 to 4096 ranks, from measurements on few.

    python bench/model_scaling.py

reads ``bench/results`` and writes ``docs/scaling.md`` and ``docs/scaling.png``. The model has three
numbers: the memory traffic that a node sustains in the shared-memory sum, and the bandwidth and the
latency of a link between nodes. It is checked against every measured point it was not fitted to.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
MIB = 2**20
RANKS_PER_NODE = 8
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
GRADIENT = 100 * MIB
DIRECT = 16  # nodes up to which each sends to each; csrc/mpi/mpi_communicator.cpp
# A cluster as they are built today; the measured link is a slow one, to make it measurable.
LINK_BYTES_PER_S = 12.5e9
LINK_LATENCY_S = 5e-6
NODE_TRAFFIC_RATIO = 6  # memory bandwidth of a server's socket beside that of 2 cores


def cases(name: str) -> dict[str, dict[str, Any]]:
    """Return a bench's rows by case."""
    found = json.loads((HERE / "results" / f"{name}.json").read_text())["cases"]
    return {case["case"]: case["contenders"] for case in found}


def seconds(rows: dict[str, Any], name: str) -> float:
    return float(rows[name]["median_us"]) * 1e-6


def node_time(size: float, ranks: int, traffic: float) -> float:
    """Each of the ranks' vectors is read once and written once: 2 · ranks · size bytes."""
    return 2 * ranks * size / traffic if ranks > 1 else 0.0


def hierarchy(
    size: float, ranks: int, per_node: int, link: tuple[float, float], traffic: float
) -> float:
    """Sum in each node, then every node sends and receives 2 (M - 1) / M."""
    nodes = math.ceil(ranks / per_node)
    inside = node_time(size, min(ranks, per_node), traffic)
    if nodes == 1:
        return inside
    bandwidth, latency = link
    messages = 2 if nodes <= DIRECT else 2 * (nodes - 1)  # direct: all at once; else a ring
    return inside + 2 * (nodes - 1) / nodes * size / bandwidth + messages * latency


def flat_ring(
    size: float, ranks: int, per_node: int, link: tuple[float, float], traffic: float
) -> float:
    """One ring of all ranks: 2 (P - 1) messages in turn, of which each link carries its share."""
    if ranks <= per_node:
        return node_time(size, ranks, traffic)
    bandwidth, latency = link
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def measured() -> tuple[float, tuple[float, float], list[tuple[str, float, float]]]:
    """Fit the three numbers, and compare the model with the other measured points."""
    two, four = cases("allreduce_2"), cases("allreduce_4")
    hosts = cases("hosts_best")
    ours = "allreduce_, allocated memory"
    fitted = "65536 KiB, float32, 2 ranks, shm"
    traffic = 2 * 2 * 64 * MIB / seconds(two[fitted], ours)
    by_size = {int(name.split()[0]): rows for name, rows in hosts.items()}
    one_way = seconds(by_size[100], "one way, rank to rank")
    link = (100 * MIB / one_way, 1e-4)
    points = []
    for name, rows in (*two.items(), *four.items()):
        kib, ranks = float(name.split()[0]), 2 if "2 ranks" in name else 4
        if "float32" in name and kib >= 25 * 1024 and name != fitted:
            predicted = node_time(kib * 1024, ranks, traffic)
            points.append(
                (f"{kib / 1024:g} MiB, {ranks} ranks, one node", predicted, seconds(rows, ours))
            )
    for mib, rows in by_size.items():
        if mib >= 25:
            predicted = hierarchy(mib * MIB, 4, 2, link, traffic)
            points.append(
                (f"{mib} MiB, 2 nodes of 2 ranks, 1 Gbit/s", predicted, seconds(rows, "hierarchy"))
            )
    return traffic, link, points


def main() -> None:
    traffic, link, points = measured()
    cluster = (LINK_BYTES_PER_S, LINK_LATENCY_S)
    server = NODE_TRAFFIC_RATIO * traffic
    rows = [
        (
            p,
            flat_ring(GRADIENT, p, RANKS_PER_NODE, cluster, server),
            hierarchy(GRADIENT, p, RANKS_PER_NODE, cluster, server),
            hierarchy(GRADIENT / 2, p, RANKS_PER_NODE, cluster, server)
            + node_time(GRADIENT / 2, min(p, RANKS_PER_NODE), server),
        )
        for p in RANKS
    ]
    write_page(traffic, link, points, rows)
    draw(rows)
    print(DOCS / "scaling.md")


def write_page(
    traffic: float,
    link: tuple[float, float],
    points: list[tuple[str, float, float]],
    rows: list[tuple[int, float, float, float]],
) -> None:
    lines = [
        "# Averaging gradients on many ranks: a model",
        "",
        "The times for many ranks on this page are predictions: fastseq has not run on 4096",
        "ranks. `bench/model_scaling.py` makes the page from `bench/results`. Its model has three",
        "numbers: the memory traffic of a node (a machine), and the bandwidth and latency of a",
        "link between nodes. It is about gradients in the host's memory; for those of GPUs, and",
        "for starting ranks on a cluster, see [GPUs and clusters](gpus-and-clusters.md).",
        "",
        "- Within a node, each rank's vector is read once and written once. The measured machine,",
        f"  with 2 cores, sustains {traffic / 1e9:.0f} GB/s of this traffic.",
        f"- The measured link between two nodes carries {link[0] / 1e6:.0f} MB/s each way.",
        "- Hierarchy (fastseq's way): each of M nodes sums the vectors of its ranks; then",
        "  2 (M - 1) / M of the bytes pass through each node's link. Up to "
        f"{DIRECT} nodes exchange",
        "  directly, more nodes in a ring.",
        "- Flat ring, for comparison: all P ranks form a ring, as in `MPI_Allreduce` for large",
        "  messages, with 2 (P - 1) messages one after the other. Its memory traffic within the",
        "  nodes is not counted, which favours it.",
        "- Nothing else uses the network, and all ranks start at once.",
        "",
        "## Predicted and measured times",
        "",
        "| | predicted, ms | measured, ms | measured / predicted |",
        "|---|---|---|---|",
        *(
            f"| {name} | {1e3 * predicted:.2f} | {1e3 * found:.2f} | {found / predicted:.2f} |"
            for name, predicted, found in points
        ),
        "",
        f"## Prediction: {GRADIENT // MIB} MiB of gradients, {RANKS_PER_NODE} ranks per node",
        "",
        f"Milliseconds per update, with links of {LINK_BYTES_PER_S * 8 / 1e9:.0f} Gbit/s and "
        f"{LINK_LATENCY_S * 1e6:.0f} µs, and memory {NODE_TRAFFIC_RATIO} times as fast as that of",
        "the measured machine. Part of this time is hidden behind backward.",
        "",
        "| ranks | flat ring | hierarchy | hierarchy, bf16 on the wire |",
        "|---|---|---|---|",
        *(f"| {p} | {1e3 * a:.2f} | {1e3 * b:.2f} | {1e3 * c:.2f} |" for p, a, b, c in rows),
        "",
        "![Milliseconds per update over the number of ranks](scaling.png)",
    ]
    (DOCS / "scaling.md").write_text("\n".join(lines) + "\n")


def draw(rows: list[tuple[int, float, float, float]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = ("flat ring", "hierarchy", "hierarchy, bf16 on the wire")
    for index, name in enumerate(names, start=1):
        axes.plot(
            [r[0] for r in rows[1:]], [1e3 * r[index] for r in rows[1:]], "o-", label=name, ms=4
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(RANKS[1:], [str(r) for r in RANKS[1:]])
    axes.set_xlabel(f"ranks, {RANKS_PER_NODE} per node")
    axes.set_ylabel("ms per update")
    axes.set_title(f"Averaging {GRADIENT // MIB} MiB: predicted", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(DOCS / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
