"""Gathering gradients into one vector: net2grad's operator beside what torch offers."""

from __future__ import annotations

import torch
from harness import Bench, Mark, same
from roofline import Work
from torch._utils import _flatten_dense_tensors

from fastseq.nn.ops import pack, pack_checked, unpack


def transformer() -> list[torch.Tensor]:
    """144 tensors of 151 MB: 12 layers of d 512 and d_ff 2048."""
    d, ff = 512, 2048
    shapes = [
        (3 * d, d),
        (3 * d,),
        (d, d),
        (d,),
        (ff, d),
        (ff,),
        (d, ff),
        (d,),
        (d,),
        (d,),
        (d,),
        (d,),
    ]
    return [torch.randn(shape) for _ in range(12) for shape in shapes]


CASES = {
    "2000 tensors of 64": lambda: [torch.randn(64) for _ in range(2000)],
    "144 tensors of a transformer, 151 MB": transformer,
}
MARKS = {
    "2000 tensors of 64": (Mark("pack", 1 / 3),),
    "144 tensors of a transformer, 151 MB": (
        Mark("pack_checked, scaled", 1.3, "memcpy into new memory (clone)"),
    ),
}


def main() -> None:
    bench = Bench.from_arguments("pack", rounds=30)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, make in CASES.items():
            tensors = make()
            numels = [t.numel() for t in tensors]
            flat = torch.cat([t.flatten() for t in tensors])
            same(pack(tensors), flat, rtol=0)
            same(pack(tensors, scale=0.5), flat * 0.5, rtol=0)
            same(pack_checked(tensors, scale=0.5)[0], flat * 0.5, rtol=0)
            same(torch.cat(unpack(flat, numels)), flat, rtol=0)
            views = [
                v.view_as(t)
                for v, t in zip(torch.empty_like(flat).split(numels), tensors, strict=True)
            ]
            torch._foreach_copy_(views, tensors)
            same(torch.cat([v.flatten() for v in views]), flat, rtol=0)
            same(_flatten_dense_tensors(tensors), flat, rtol=0)
            copy = torch.empty_like(flat)
            bench.compare(
                f"{name}, {threads} thread(s)",
                {
                    "_flatten_dense_tensors": lambda t=tensors: _flatten_dense_tensors(t),
                    "torch.cat": lambda t=tensors: torch.cat([a.flatten() for a in t]),
                    "_foreach_copy_ into views": lambda v=views, t=tensors: torch._foreach_copy_(
                        v, t
                    ),
                    "memcpy (one copy_ of all)": lambda c=copy, f=flat: c.copy_(f),
                    "memcpy into new memory (clone)": lambda f=flat: f.clone(),
                    "pack": lambda t=tensors: pack(t),
                    "pack, scaled": lambda t=tensors: pack(t, scale=0.5),
                    "pack_checked, scaled": lambda t=tensors: pack_checked(t, scale=0.5),
                    "_flatten_dense_tensors, scaled": lambda t=tensors: _flatten_dense_tensors(
                        t
                    ).mul_(0.5),
                },
                bytes_moved=4 * flat.numel(),
                work=Work(0, 2 * 4 * flat.numel()),  # read once, written once
                marks=MARKS.get(name, ()),
            )
    bench.write()


if __name__ == "__main__":
    main()
