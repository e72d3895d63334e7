"""What gathering gradients into one buffer adds to a backward pass that leaves them where they are.

144 parameters of 151 MB; the graph is as cheap as can be, so that the memory traffic shows. The
ways in: `Bucketizer` in a single process (gathers, has nothing to exchange), ``.grad`` as permanent
views of the buffer, and `torch._foreach_copy_` of fresh gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_pack import transformer
from harness import Bench, Mark, same
from torch import Tensor, nn

import fastseq as fs

BARE, OURS, VIEWS = "bare backward", "Bucketizer", "permanent views"
COPY = "fresh gradients, _foreach_copy_"


class Parameters(nn.Module):
    """Parameters whose gradients are one product each."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(t) for t in transformer())

    def forward(self) -> Tensor:
        """Return half of the sum of squares."""
        return sum((p.square().sum() for p in self.all), torch.zeros(())) / 2


def views_of(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    params = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in params))
    pieces = torch.split(flat, [p.numel() for p in params])
    return flat, [v.view_as(p) for v, p in zip(pieces, params, strict=True)]


def contenders(model: Parameters) -> dict[str, Callable[[], object]]:
    params = list(model.parameters())
    viewed, copied, ours = (Parameters() for _ in range(3))
    buckets = fs.distributed.Bucketizer(ours, None)
    flat, views = views_of(viewed)
    for p, view in zip(viewed.parameters(), views, strict=True):
        p.grad = view
    _, places = views_of(copied)

    def bare() -> None:
        model.zero_grad()
        model().backward()

    def gathered() -> None:
        ours.zero_grad()
        ours().backward()
        buckets.wait()

    def into_views() -> None:
        flat.zero_()
        viewed().backward()

    def foreach_copy() -> None:
        copied.zero_grad()
        copied().backward()
        torch._foreach_copy_(places, [p.grad for p in copied.parameters()])

    calls = {BARE: bare, OURS: gathered, VIEWS: into_views, COPY: foreach_copy}
    for call in calls.values():
        call()
    for p, mine, view, place in zip(params, ours.parameters(), views, places, strict=True):
        for found, owner in ((mine.grad, mine), (view, None), (place, None), (p.grad, p)):
            if owner is not None and found is not None:
                same(found, owner.detach(), rtol=1e-6)
    return calls


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench.from_arguments("gather", rounds=20)
    bench.compare(
        "144 parameters, 151 MB",
        contenders(Parameters()),
        marks=(Mark(OURS, 1.0, VIEWS), Mark(OURS, 1.0, COPY)),
    )
    bench.write()


if __name__ == "__main__":
    main()
