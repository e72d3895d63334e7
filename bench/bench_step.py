"""What averaging gradients adds to a training step, beside what torch DDP adds; under mpirun.

Four loops train copies of one model on the same data: alone on each rank (the step itself, all
ranks at once), with `Bucketizer`, with `DistributedDataParallel` over gloo as it comes, and with
its `gradient_as_bucket_view`. "adds" is the time beyond the loop that averages nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from bench_allreduce import start_gloo
from harness import Bench, Mark, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastseq as fs

ALONE, OURS, DDP = "no averaging", "Bucketizer", "DDP (gloo)"
VIEWS = "DDP (gloo), gradient_as_bucket_view"
WHOLE_STEPS = {"transformer, 10 x 2": 1.3, "LSTM, 10 x 4": 1.3}


class Transformer(nn.Module):
    """6 layers, d 256."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``(S, B, 256)``."""
        return self.encoder(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM of 2 layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 256, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``(S, B, 256)``."""
        return self.lstm(x)[0]  # type: ignore[no-any-return]


# Steps in a row, as in training; after a change of loops the caches hold another model.
REPEATS = 8

CASES = [
    ("transformer, 10 x 2", Transformer, 10, 2),
    ("transformer, 32 x 8", Transformer, 32, 8),
    ("LSTM, 10 x 4", Recurrent, 10, 4),
    ("LSTM, 10 x 20", Recurrent, 10, 20),
    ("LSTM, 50 x 32", Recurrent, 50, 32),
]


def step_of(model: nn.Module, x: Tensor, average: Callable[[], object]) -> Callable[[], None]:
    """Return a function that makes one step of plain SGD on a model."""
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=1e-3, foreach=True)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        average()
        optimizer.step()

    return step


def main() -> None:
    comm = fs.distributed.world()
    start_gloo(comm)
    bench = Bench.from_arguments(f"step_{comm.size}", rounds=20, shown=comm.rank == 0)
    for name, make, steps, batch in CASES:
        torch.manual_seed(0)
        model = make()
        torch.manual_seed(comm.rank)
        x = torch.randn(steps, batch, 256)
        ours = copy.deepcopy(model)
        buckets = fs.distributed.Bucketizer(ours, comm.duplicate())
        ddp = DistributedDataParallel(copy.deepcopy(model))
        views = DistributedDataParallel(copy.deepcopy(model), gradient_as_bucket_view=True)
        loops = {
            ALONE: step_of(copy.deepcopy(model), x, lambda: None),
            OURS: step_of(ours, x, buckets.wait),
            DDP: step_of(ddp, x, lambda: None),
            VIEWS: step_of(views, x, lambda: None),
        }
        for loop in loops.values():
            loop()
        for mine, theirs in zip(ours.parameters(), ddp.module.parameters(), strict=True):
            same(mine, theirs, rtol=1e-4)
        marks = []
        if name in WHOLE_STEPS:
            marks.append(Mark(OURS, 1 / WHOLE_STEPS[name], DDP))
        bench.compare(f"{name}, {comm.size} ranks", loops, repeats=REPEATS, marks=tuple(marks))
        report_additions(bench, most=0.3)
        buckets.close()
    bench.write(ranks=comm.size)
    torch.distributed.destroy_process_group()


def report_additions(bench: Bench, most: float) -> None:
    """Set what averaging adds beside what DDP adds: the mark is on that ratio."""
    contenders = bench.cases[-1]["contenders"]
    added = {
        name: row["median_us"] - contenders[ALONE]["median_us"] for name, row in contenders.items()
    }
    best = min(added[DDP], added[VIEWS])
    ratio = added[OURS] / best
    contenders[OURS]["marks"].append(
        {"against": "what DDP adds", "ratio": ratio, "at_most": most, "met": ratio <= most}
    )
    bench.say(
        f"  adds {added[OURS]:.0f} us, DDP at best {best:.0f}: {ratio:.2f}, mark <= {most}: "
        f"{'met' if ratio <= most else 'NOT MET'}"
    )


if __name__ == "__main__":
    main()
