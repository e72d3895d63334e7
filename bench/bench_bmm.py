"""`fastseq.bmm` and its kernel beside `torch.bmm`, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Bench, Mark, same

import fastseq as fs

SHAPES = [
    (2, 2, 2), (3, 5, 7), (4, 4, 4), (8, 8, 8), (12, 12, 12), (16, 16, 16),
    (1, 32, 32), (32, 32, 1), (1, 8, 64), (64, 64, 64),
]  # fmt: skip
BATCHES = (1, 100, 1000, 10_000)
NO_SLOWER = 1 / 0.97


def operands(
    batch: int, shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool
) -> list[torch.Tensor]:
    m, k, n = shape
    a = torch.randn(batch, k, m).mT if transposed else torch.randn(batch, m, k)
    b = torch.randn(batch, n, k).mT if transposed else torch.randn(batch, k, n)
    return [t.to(dtype).requires_grad_() for t in (a, b)]


def forward(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return product(a, b)


def both(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = product(a, b)
    return torch.autograd.grad(out, (a, b), out.detach())[0]


def marks(batch: int, shape: tuple[int, int, int], *, backward: bool) -> tuple[Mark, ...]:
    if batch >= 10_000 and shape == (4, 4, 4):
        return (Mark("fastseq.bmm", 1 / 5 if backward else 1 / 8),)
    return (Mark("fastseq.bmm", NO_SLOWER),)


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench.from_arguments("bmm", rounds=30)
    native = torch.ops.fastseq.bmm
    kinds = [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float64, False),
        (torch.bfloat16, False),
    ]
    for dtype, transposed in kinds:
        for shape in SHAPES:
            for batch in BATCHES:
                if batch * shape[0] * shape[1] * shape[2] > 10**8:
                    continue
                a, b = operands(batch, shape, dtype, transposed)
                exact = torch.bmm(a.detach().double(), b.detach().double())
                tolerance = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.1)
                for product in (fs.bmm, native):
                    same(product(a, b).detach().double(), exact, rtol=tolerance)
                for name, run in (("forward", forward), ("forward + backward", both)):
                    if run is both and (dtype != torch.float32 or transposed):
                        continue
                    work = max(batch * shape[0] * shape[1] * shape[2], 1)
                    size = "x".join(map(str, shape))
                    order = ", transposed" if transposed else ""
                    bench.compare(
                        f"{size}, batch {batch}, {str(dtype)[6:]}{order}, {name}",
                        {
                            "torch.bmm": lambda a=a, b=b, run=run: run(torch.bmm, a, b),
                            "fastseq.bmm": lambda a=a, b=b, run=run: run(fs.bmm, a, b),
                            "the kernel, whatever the shape": lambda a=a, b=b, run=run: run(
                                native, a, b
                            ),
                        },
                        repeats=max(1, min(50, 200_000 // work)),
                        marks=marks(batch, shape, backward=run is both),
                    )
    bench.write()


if __name__ == "__main__":
    main()
