"""`Estimator(amp="bf16")` beside single precision, and beside a plain loop under autocast.

Where the processor has no instructions for bf16, `fit` computes in single precision.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from bench_fit import LARGE, MIDDLE, Fit, Plain
from fit_tasks import Task
from harness import Bench, Mark

# Losses of an epoch: bf16 has 8 bits.
TOLERANCE = 0.02
OURS = "fit, bf16"


class Autocast(Plain):
    """The plain loop with its forward pass under autocast."""

    def forward(self, *arguments: Any) -> tuple[torch.Tensor, Any]:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(*arguments)


def run(bench: Bench, task: Task, marks: tuple[Mark, ...]) -> None:
    """Check that all learn the same, and time them."""
    torch.manual_seed(0)
    x, y = task.data()
    layer, head = task.layer(), task.head()
    makers = {
        "plain loop, autocast": Autocast,
        "plain loop": Plain,
        "fit": Fit,
        OURS: functools.partial(Fit, amp="bf16"),
    }
    contenders: dict[str, Any] = {}
    for name, make in makers.items():
        own = task.own(layer) if name.startswith("fit") else copy.deepcopy(layer)
        contenders[name] = make(own, copy.deepcopy(head), x, y, task.shape.n, task.shape.s)
        contenders[name]()
        wanted = contenders["plain loop, autocast"].loss
        if not abs(contenders[name].loss - wanted) <= TOLERANCE * wanted:
            raise AssertionError(f"{name}: a loss of {contenders[name].loss}, wanted {wanted}")
    bench.compare(
        f"{task}, {torch.get_num_threads()} thread(s)", contenders, work=task.work(), marks=marks
    )


def main() -> None:
    bench = Bench.from_arguments("amp", rounds=10)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for task in (MIDDLE, LARGE):
            run(bench, task, (Mark(OURS, 1.0), Mark(OURS, 1.03, "fit")))
    bench.write()


if __name__ == "__main__":
    main()
