"""The operators on a GPU beside torch's: gathering gradients, and many small products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_pack import transformer
from harness import Bench, Mark, same

import fastseq as fs
from fastseq.nn.ops import pack, pack_checked

SQUARES = (2, 4, 8, 12, 16, 24, 32, 64)
BATCHES = (1000, 10_000, 100_000)


def awaited(call: Callable[[], object]) -> Callable[[], None]:
    """Make a call that returns when the device has done it."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def gather(bench: Bench) -> None:
    tensors = [t.cuda() for t in transformer()]
    flat = torch.cat([t.flatten() for t in tensors])
    same(pack(tensors, scale=0.5), flat * 0.5, rtol=0)
    same(pack_checked(tensors, scale=0.5)[0], flat * 0.5, rtol=0)
    numels, target = [t.numel() for t in tensors], torch.empty_like(flat)
    pairs = zip(target.split(numels), tensors, strict=True)
    views = [v.view_as(t) for v, t in pairs]
    copy = "device copy of as many bytes"
    bench.compare(
        "144 tensors of a transformer, 151 MB, scaled",
        {
            copy: awaited(lambda: target.copy_(flat)),
            "_foreach_copy_ into views": awaited(lambda: torch._foreach_copy_(views, tensors)),
            "pack": awaited(lambda: pack(tensors, scale=0.5)),
            "pack_checked": awaited(lambda: pack_checked(tensors, scale=0.5)),
        },
        bytes_moved=2 * 4 * flat.numel(),
        marks=(Mark("pack", 1 / 0.85), Mark("pack", 1 / 1.2, "_foreach_copy_ into views")),
    )


def products(bench: Bench) -> None:
    for dtype in (torch.float32, torch.float16):
        for side in SQUARES:
            for batch in BATCHES:
                if batch * side * side > 2**28:
                    continue
                a, b = (
                    torch.randn(batch, side, side, device="cuda", dtype=dtype) for _ in range(2)
                )
                same(fs.bmm(a, b), torch.bmm(a, b), rtol=1e-2)
                small = side <= 16 and batch >= 10_000
                bench.compare(
                    f"{side}x{side}x{side}, batch {batch}, {str(dtype)[6:]}",
                    {
                        "torch.bmm": awaited(lambda a=a, b=b: torch.bmm(a, b)),
                        "fastseq.bmm": awaited(lambda a=a, b=b: fs.bmm(a, b)),
                    },
                    repeats=10,
                    marks=(Mark("fastseq.bmm", 1 / 2 if small else 1 / 0.97),),
                )


def main() -> None:
    if not torch.cuda.is_available():
        print("gpu: left out: there is no GPU")
        return
    bench = Bench.from_arguments("gpu", rounds=30)
    gather(bench)
    products(bench)
    bench.write(gpu=torch.cuda.get_device_name(0))


if __name__ == "__main__":
    main()
