"""The operators on a GPU beside torch's: gathering gradients, and many small products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_pack import transformer
from harness import Bench, Mark, Seconds, same

import fastseq as fs
from fastseq.nn.ops import pack, pack_checked

SQUARES = (2, 4, 8, 12, 16, 24, 32, 64)
BATCHES = (1000, 10_000, 100_000)
CALLS = 10  # between two events
CYCLES_OF_SLEEP = 10_000_000  # about five milliseconds, in which the host issues all calls


def timed(call: Callable[[], object]) -> Callable[[], Seconds]:
    """Make a call that returns its own time on the device, that of issuing it left out."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> Seconds:
        torch.cuda._sleep(CYCLES_OF_SLEEP)
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        return Seconds(begin.elapsed_time(end) / 1000 / CALLS)

    return run


def gather() -> None:
    bench = Bench.from_arguments("gpu-gather", rounds=30)
    tensors = [t.cuda() for t in transformer()]
    flat = torch.cat([t.flatten() for t in tensors])
    same(pack(tensors, scale=0.5), flat * 0.5, rtol=0)
    same(pack_checked(tensors, scale=0.5)[0], flat * 0.5, rtol=0)
    numels, target = [t.numel() for t in tensors], torch.empty_like(flat)
    pairs = zip(target.split(numels), tensors, strict=True)
    views = [v.view_as(t) for v, t in pairs]
    bench.compare(
        "144 tensors of a transformer, 151 MB, scaled",
        {
            "device copy of as many bytes": timed(lambda: target.copy_(flat)),
            "_foreach_copy_ into views": timed(lambda: torch._foreach_copy_(views, tensors)),
            "pack": timed(lambda: pack(tensors, scale=0.5)),
            "pack_checked": timed(lambda: pack_checked(tensors, scale=0.5)),
        },
        bytes_moved=2 * 4 * flat.numel(),
        marks=(Mark("pack", 1 / 0.85), Mark("pack", 1 / 1.2, "_foreach_copy_ into views")),
    )
    bench.write(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)


def products() -> None:
    bench = Bench.from_arguments("gpu-bmm", rounds=30)
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
                        "torch.bmm": timed(lambda a=a, b=b: torch.bmm(a, b)),
                        "fastseq.bmm": timed(lambda a=a, b=b: fs.bmm(a, b)),
                    },
                    marks=(Mark("fastseq.bmm", 1 / 2 if small else 1 / 0.97),),
                )
    bench.write(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)


def main() -> None:
    if not torch.cuda.is_available():
        print("gpu: left out: there is no GPU")
        return
    gather()
    products()


if __name__ == "__main__":
    main()
