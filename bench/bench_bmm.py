"""`fastseq.bmm` and its kernel beside `torch.bmm`, on one thread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Bench, Mark, same
from roofline import Work

import fastseq as fs

SHAPES = [
    (2, 2, 2), (3, 5, 7), (4, 4, 4), (6, 6, 6), (7, 7, 7), (8, 8, 8), (12, 12, 12), (16, 16, 16),
    (1, 8, 8), (8, 8, 1), (1, 32, 32), (32, 32, 1), (1, 8, 64), (16, 4, 4), (64, 64, 64),
]  # fmt: skip
BATCHES = (1, 100, 1000, 10_000)
KINDS = [
    (torch.float32, False),
    (torch.float32, True),
    (torch.float64, False),
    (torch.bfloat16, False),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}
KERNEL = "the kernel, whatever the shape"
NO_SLOWER = 1 / 0.97
native = torch.ops.fastseq.bmm

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def operands(
    batch: int, shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    m, k, n = shape
    a = torch.randn(batch, k, m).mT if transposed else torch.randn(batch, m, k)
    b = torch.randn(batch, n, k).mT if transposed else torch.randn(batch, k, n)
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


def forward(product: Product, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return product(a, b)


def both(product: Product, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out = product(a, b)
    return torch.autograd.grad(out, (a, b), out.detach())


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    """Raise unless products and gradients agree with those in double precision."""
    with torch.no_grad():
        exact = a.double() @ b.double()
        gradients = exact @ b.double().mT, a.double().mT @ exact
        tolerance = TOLERANCES[a.dtype]
    for product in (torch.bmm, fs.bmm, native):
        same(forward(product, a, b).double(), exact, rtol=tolerance)
        for found, wanted in zip(both(product, a, b), gradients, strict=True):
            size = float(wanted.abs().max())
            same(found.double() / size, wanted / size, rtol=tolerance)


def marks(batch: int, shape: tuple[int, int, int], *, backward: bool) -> tuple[Mark, ...]:
    if batch >= 10_000 and shape == (4, 4, 4):
        return (Mark("fastseq.bmm", 1 / 5 if backward else 1 / 8),)
    return (Mark("fastseq.bmm", NO_SLOWER),)


def work(batch: int, shape: tuple[int, int, int], dtype: torch.dtype, *, backward: bool) -> Work:
    """Count a product, and with backward its gradients' two: each reads two and writes one."""
    m, k, n = shape
    products = 3 if backward else 1
    return Work(
        products * 2 * batch * m * k * n,
        products * batch * (m * k + k * n + m * n) * dtype.itemsize,
        dtype,
    )


def print_choices(bench: Bench) -> None:
    """Set the kernel's ratio beside that of `fastseq.bmm`: where they differ, torch was chosen."""
    table: dict[str, dict[str, str]] = {}
    for case in bench.cases:
        size, batch, rest = case["case"].split(", ", 2)
        ratios = (case["contenders"][name]["ratio"] for name in (KERNEL, "fastseq.bmm"))
        line = table.setdefault(f"{size}, {rest}", {})
        line[batch] = "{:.2f} {:.2f}".format(*ratios)
    head = "".join(f"{f'batch {batch}':>14}" for batch in BATCHES)
    print(f"\n{'ratios of the kernel, of fastseq.bmm':50}{head}")
    for name, line in table.items():
        print(f"{name:50}" + "".join(f"{line.get(f'batch {batch}', ''):>14}" for batch in BATCHES))


def main() -> None:
    torch.set_num_threads(1)
    bench = Bench.from_arguments("bmm", rounds=30)
    for dtype, transposed in KINDS:
        for shape in SHAPES:
            for batch in BATCHES:
                size = batch * shape[0] * shape[1] * shape[2]
                if size > 10**8:
                    continue
                a, b = operands(batch, shape, dtype, transposed)
                check(a, b)
                for name, run in (("forward", forward), ("forward + backward", both)):
                    title = "x".join(map(str, shape))
                    order = ", transposed" if transposed else ""
                    bench.compare(
                        f"{title}, batch {batch}, {str(dtype)[6:]}{order}, {name}",
                        {
                            "torch.bmm": lambda a=a, b=b, run=run: run(torch.bmm, a, b),
                            "fastseq.bmm": lambda a=a, b=b, run=run: run(fs.bmm, a, b),
                            KERNEL: lambda a=a, b=b, run=run: run(native, a, b),
                        },
                        repeats=max(1, min(50, 200_000 // size)),
                        work=work(batch, shape, dtype, backward=run is both),
                        marks=marks(batch, shape, backward=run is both),
                    )
    print_choices(bench)
    bench.write()


if __name__ == "__main__":
    main()
