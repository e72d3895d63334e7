"""Plant bugs in CUDA code, and fail unless the tests on the host find each.

python tests/cuda/mutants.py BUILD [BUILD ...]

The builds are those of the C++ tests, say a plain one, one with address sanitizer and one with
thread sanitizer. A bug counts as found if a test fails, or does not end, in one of them: they are
tried in this order.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300

PACK, BMM, BUCKETS = "pack_kernels.cu", "bmm_kernels.cu", "device_bucketizer.cpp"
FORWARD, BACKWARD, GRADIENTS = (
    f"recurrence_{part}.cu" for part in ("forward", "backward", "gradients")
)
MUTANTS = {
    "read past the end of a tensor": (
        PACK, "    if (i < vectors) raw[v]", "    if (i <= vectors) raw[v]"),
    "alignment of the target not looked at": (
        PACK, "is_aligned<From, kItems>(from) && is_aligned<To, kItems>(to)",
        "is_aligned<From, kItems>(from)"),
    "last element left out": (
        PACK, "threadIdx.x); i < copied; i += kThreads", "threadIdx.x); i < copied - 1; i += kThreads"),
    "gaps not zeroed": (PACK, "i < end; i += kThreads) to[i]", "i < copied; i += kThreads) to[i]"),
    "no barrier before sums are read": (
        PACK, "sums[threadIdx.x / 32] = value;\n  __syncthreads();", "sums[threadIdx.x / 32] = value;"),
    "no barrier after sums are read": (
        PACK, "value += sums[warp];\n  }\n  __syncthreads();", "value += sums[warp];\n  }"),
    "shuffle in a branch": (
        PACK, "  for (int width = 16; width > 0; width /= 2) value",
        "  if (threadIdx.x != 5) for (int width = 16; width > 0; width /= 2) value"),
    "second table writes over the first's facts": (
        PACK, "out.scratch + 2 * chunks;", "out.scratch;"),
    "no barrier before tiles of small products are read": (
        BMM, "i % (k * n) / n, i % n);\n    }\n    __syncthreads();", "i % (k * n) / n, i % n);\n    }"),
    "no barrier before tiles of small products are overwritten": (
        BMM, "c[first * m * n + i] = static_cast<T>(sum);\n    }\n    __syncthreads();",
        "c[first * m * n + i] = static_cast<T>(sum);\n    }"),
    "no barrier before tiles are overwritten": (
        BMM, "a_tile[y][q] * b_tile[q][x];\n        __syncthreads();", "a_tile[y][q] * b_tile[q][x];"),
    "barrier in a branch": (
        BMM, "b_tile[q][x];\n        __syncthreads();",
        "b_tile[q][x];\n        if (row < s.m) __syncthreads();"),
    "write past the end of a product": (
        BMM, "if (row < s.m && column < s.n) c", "if (row < s.m) c"),
    "packing does not wait for gradients": (
        BUCKETS, "way.produced[k].second->precede(packs_);", ";"),
    "only the first stream of a bucket counts": (
        BUCKETS, "while (k < way.streams && way.produced[k].first != producer) ++k;",
        "if (way.streams != 0) k = 0;"),
    "copy to the host does not wait for packing": (BUCKETS, "  way.packed.precede(copies_);\n", ""),
    "exchange does not wait for the copy": (
        BUCKETS, "  ways_[index]->fetched.synchronize();\n", ""),
    "event of the copy to the host left out": (
        BUCKETS, "  way.fetched.record(copies_);\n", ""),
    "event before the copy that it stands for": (
        BUCKETS,
        "  check(cudaMemcpyAsync(device_data(index), data_of(bucket), bytes, cudaMemcpyHostToDevice, "
        'copies_),\n        "cudaMemcpyAsync");\n  ways_[index]->delivered.record(copies_);\n',
        "  ways_[index]->delivered.record(copies_);\n"
        "  cudaMemcpyAsync(device_data(index), data_of(bucket), bytes, cudaMemcpyHostToDevice, "
        "copies_);\n"),
    "the reader does not wait for the means": (BUCKETS, "way->delivered.precede(reader);", ";"),
    "packing does not wait for the last reader": (BUCKETS, "  read_.precede(packs_);\n", ""),
    "scale left out": (BUCKETS, "pieces.layout, dtype, scale(),", "pieces.layout, dtype, 1.0,"),
    "a parameter without gradient keeps the last one": (
        BUCKETS, "from == nullptr ? 0 : numel(*member)", "numel(*member)"),
    "no barrier between a step's sums and its cells": (
        FORWARD, "f.give(of_input, of_hidden);\n    __syncthreads();", "f.give(of_input, of_hidden);"),
    "no barrier between a step's cells and the next sums": (
        FORWARD, "state[k], out);\n    }\n    __syncthreads();", "state[k], out);\n    }"),
    "a step beyond a sequence's length": (
        FORWARD, "if (i < items[k].length) f.cell", "if (i <= items[k].length) f.cell"),
    "no barrier before the inputs' tile is overwritten": (
        FORWARD, "tile_columns<P::kTile>(first, s.inputs);\n      __syncthreads();",
        "tile_columns<P::kTile>(first, s.inputs);"),
    "backward, reversed, starts at the last step of all": (
        BACKWARD, "d_at(item, steps.at(i, item.length))", "d_at(item, steps.at(i, s.steps))"),
    "state of the wrong step": (
        BACKWARD, "t_before = steps.at(i - 1, item.length)", "t_before = steps.at(i, item.length) - 1"),
    "no barrier before gradients of a step's sums are read": (
        BACKWARD, "    __syncthreads();\n    b.products(w);", "    b.products(w);"),
    "no barrier before the next cells": (
        BACKWARD, "b.products(w);\n    __syncthreads();", "b.products(w);"),
    "gradients beyond a sequence's length left as they are": (
        BACKWARD, "t = items[k].length; t < s.steps", "t = items[k].length + 1; t < s.steps"),
    "weights' gradients of the state after": (
        GRADIENTS, "steps.at(place - 1, length)", "steps.at(place, length)"),
    "last part of the weights' gradients left out": (
        GRADIENTS, "p < parts.count; ++p", "p < parts.count - (parts.count > 1); ++p"),
    "no barrier before tiles of gradients are overwritten": (
        GRADIENTS, "      }\n    }\n    __syncthreads();\n  }\n}", "      }\n    }\n  }\n}"),
}  # fmt: skip
TESTS = {
    PACK: "pack_kernels",
    BMM: "bmm_kernels",
    BUCKETS: "device_bucketizer",
    **dict.fromkeys((FORWARD, BACKWARD, GRADIENTS), "recurrence_kernels"),
}


def cached(build: Path, name: str) -> str:
    found = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    return found[1] if found else ""


def found_in(build: Path, file: str, text: str, folder: Path) -> str:
    """Return how a test fails with this text in place of a file; empty: it does not."""
    source = folder / file
    source.write_text(text)
    sanitizer = cached(build, "FASTSEQ_SANITIZE")
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    compiler, program = cached(build, "CMAKE_CXX_COMPILER"), folder / "test"
    tests = build / "tests" / "cuda" / "CMakeFiles" / f"test_{TESTS[file]}_on_host.dir"
    libraries = [
        build / "tests/cuda_on_host/libfastseq_cuda_on_host.a",
        build / "tests/cuda_on_host/libcuda_on_host.a",
        build / "csrc/core/libfastseq_core.a",
    ]
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-g", "-w", "-fno-strict-aliasing", "-DCUDA_ON_HOST", *flags,
         "-I", ROOT / "tests/cuda_on_host/include", "-I", ROOT / "csrc", "-include", "cuda_runtime.h",
         "-x", "c++", "-c", source, "-o", folder / "mutant.o"], check=True,
    )  # fmt: skip
    subprocess.run(
        [compiler, *flags, *tests.rglob("*.o"), folder / "mutant.o", *libraries, "-pthread", "-o",
         program], check=True,
    )  # fmt: skip
    try:
        ran = subprocess.run(
            [program], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    if ran.returncode == 0:
        return ""
    told = re.compile("WARNING: Thread|ERROR: Address|runtime error|CUDA on the host|^/.*:\\d+:")
    lines = (ran.stdout + ran.stderr).splitlines()
    return next((line for line in lines if told.search(line)), f"exit status {ran.returncode}")


def main() -> None:
    builds = [Path(name).resolve() for name in sys.argv[1:]]
    if not builds:
        raise SystemExit(__doc__)
    left = []
    for name, (file, old, new) in MUTANTS.items():
        text = (ROOT / "csrc" / "cuda" / file).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{name}: {file} has {text.count(old)} times {old!r}")
        how = ""
        for build in builds:
            with tempfile.TemporaryDirectory() as folder:
                how = found_in(build, file, text.replace(old, new), Path(folder))
            if how:
                print(f"found  {name}: {how[:100]} ({build.name})", flush=True)
                break
        if not how:
            left.append(name)
            print(f"LEFT   {name}", flush=True)
    print(f"{len(MUTANTS) - len(left)} of {len(MUTANTS)} bugs found")
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
