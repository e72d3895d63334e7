"""`fit` on 2 ranks beside `fit` on one, with the same work per rank; run under mpirun -n 2.

One rank trains alone while the other waits asleep; then both train together on twice the sequences.
The ratio of their times is 1 ÷ efficiency. What the machine itself allows is shown by both training
at once but apart, each for itself. What averaging adds to an update is the time beyond that; with a
small model it is set beside the exchange itself, an `allreduce_` of as many numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import Bench, Mark
from torch.nn.functional import mse_loss

import fastseq as fs

OVER_ONE, APART, EXCHANGE = "fit on {} ranks", "{} fits at once, apart", "as many allreduce_ alone"
SMALL, MOST_ADDED = 10, 15.0  # hidden units, and microseconds
# hidden units, batchsize, seqsize, steps of the series: a third to half a second of work each
CASES = [(10, 20, 10, 8000), (64, 32, 25, 6000), (256, 20, 10, 1500)]


def fit_of(
    comm: fs.distributed.Communicator | None, hidden: int, batch: int, seqsize: int, steps: int
) -> Callable[[], object]:
    ranks = 1 if comm is None else comm.size
    torch.manual_seed(0)
    x = torch.randn(steps, batch * ranks, 10)
    y = x.mean(2, keepdim=True)
    model = fs.nn.Chain(fs.nn.LSTM(10, hidden), torch.nn.Linear(hidden, 1))
    spec = {"epochs": 1, "batchsize": batch, "seqsize": seqsize}
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    est = fs.Estimator(model, fs.seqloss(mse_loss), adamw, spec, comm=comm, progress=False, seed=0)
    return lambda: est.fit(x, y)


def report_additions(bench: Bench, updates: int, ranks: int) -> None:
    """Set what averaging adds to an update beside the exchange itself: a mark on the difference."""
    rows = bench.cases[-1]["contenders"]
    together, apart = rows[OVER_ONE.format(ranks)], rows[APART.format(ranks)]
    added = (together["median_us"] - apart["median_us"]) / updates
    exchange = rows[EXCHANGE]["median_us"] / updates
    met = added - exchange <= MOST_ADDED
    together["marks"].append(
        {
            "against": "microseconds of an exchange",
            "ratio": added - exchange,
            "at_most": MOST_ADDED,
            "met": met,
        }
    )
    bench.say(
        f"  adds {added:.1f} us to an update, the exchange takes {exchange:.1f}: mark <= "
        f"{MOST_ADDED:g} more: {'met' if met else 'NOT MET'}"
    )


def main() -> None:
    comm = fs.distributed.world()
    torch.set_num_threads(1)
    bench = Bench.from_arguments(f"scaling_{comm.size}", rounds=8, shown=comm.rank == 0)
    for hidden, *sizes in CASES:
        together = fit_of(comm, hidden, *sizes)
        alone = fit_of(None, hidden, *sizes)

        def apart(ranks: int, alone: Callable[[], object] = alone) -> None:
            if comm.rank < ranks:
                alone()
            comm.barrier()

        name = OVER_ONE.format(comm.size)
        contenders = {
            "fit on 1 rank": partial(apart, 1),
            APART.format(comm.size): partial(apart, comm.size),
            name: together,
        }
        updates = sizes[2] // sizes[1]
        if hidden == SMALL:
            gradients = comm.allocate(4 * hidden * (10 + hidden + 2) + hidden + 1, torch.float32)

            def exchange(updates: int = updates, gradients: torch.Tensor = gradients) -> None:
                for _ in range(updates):
                    comm.allreduce_(gradients)

            contenders[EXCHANGE] = exchange
        bench.compare(
            f"LSTM(10,{hidden})+Linear, batchsize {sizes[0]} per rank, seqsize {sizes[1]}",
            contenders,
            marks=(Mark(name, 1 / 0.9),),
        )
        if hidden == SMALL:
            report_additions(bench, updates, comm.size)
    bench.write(ranks=comm.size)


if __name__ == "__main__":
    main()
