"""Plant bugs in CUDA code, and fail unless the tests on the host find each.

python tests/cuda/mutants.py BUILD [BUILD ...]

The builds are those of the C++ tests, say a plain one, one with address sanitizer and one with
thread sanitizer. A bug counts as found if a test fails, or does not end, in one of them: they are
tried in this order.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300

PACK, BMM, BLOCK = "pack_kernels.cu", "bmm_kernels.cu", "block.h"
FORWARD, BACKWARD, GRADIENTS = (
    f"recurrence_{part}.cu" for part in ("forward", "backward", "gradients")
)
BUCKETS, SUMS = "device_bucketizer.cpp", "exchanges/exchange_kernels.cu"
STAGED, STREAMED, IPC, NCCL, MPI = (
    f"exchanges/{name}_exchange.cpp" for name in ("staged", "streamed", "ipc", "nccl", "cuda_mpi")
)
CHOICE, NCCL_RANKS = "exchanges/make_exchange.cpp", "exchanges/nccl_communicator.cpp"
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
        BLOCK, "sums[threadIdx.x / 32] = value;\n  __syncthreads();", "sums[threadIdx.x / 32] = value;"),
    "no barrier after sums are read": (
        BLOCK, "value += sums[warp];\n  }\n  __syncthreads();", "value += sums[warp];\n  }"),
    "shuffle in a branch": (
        BLOCK, "  for (int width = 16; width > 0; width /= 2) value",
        "  if (threadIdx.x != 5) for (int width = 16; width > 0; width /= 2) value"),
    "second table writes over the first's facts": (
        PACK, "out.scratch + 2 * chunks;", "out.scratch;"),
    "no barrier before tiles of small products are read": (
        BMM, "thread, b_tile);\n    __syncthreads();", "thread, b_tile);"),
    "no barrier before tiles of small products are overwritten": (
        BMM, "= static_cast<T>(sum);\n    }\n    __syncthreads();", "= static_cast<T>(sum);\n    }"),
    "matrices past the end of a batch": (BMM, "batch - first < per_block ? batch - first : ", ""),
    "gaps between matrices not looked at": (BMM, " && batch == rows * columns", ""),
    "gaps between lines not looked at": (BMM, "(count == 1 || line == length)", "true"),
    "gaps between items not looked at": (BMM, "(length == 1 || item == 1)", "true"),
    "small products beyond the grid left out": (BMM, "first < batch; first += step", "first < batch; first = batch"),
    "kernel for another k": (BMM, "size_t>(k) : 0", "size_t>(k == 5 ? 4 : k) : 0"),
    "no barrier before tiles are overwritten": (
        BMM, "a_tile[y][q] * b_tile[q][x];\n        __syncthreads();", "a_tile[y][q] * b_tile[q][x];"),
    "barrier in a branch": (
        BMM, "b_tile[q][x];\n        __syncthreads();",
        "b_tile[q][x];\n        if (top + y < s.m) __syncthreads();"),
    "write past the end of a product": (
        BMM, "if (row < s.m && column < s.n) c", "if (row < s.m) c"),
    "products beyond the grid left out": (BMM, "i < s.batch; i += gridDim.z", "i < s.batch; i = s.batch"),
    "rows beyond the grid left out": (
        BMM, "top += static_cast<std::int64_t>(gridDim.y) * kTile", "top = s.m"),
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
    "packing does not wait for gradients": (
        BUCKETS, "producers.events[k].second->precede(packs_);", ";"),
    "only the first stream of a bucket counts": (
        BUCKETS, "while (k < producers.count && producers.events[k].first != producer) ++k;",
        "if (producers.count != 0) k = 0;"),
    "packing does not wait for the last reader": (BUCKETS, "  read_.precede(packs_);\n", ""),
    "scale left out": (BUCKETS, "layout, dtype, scale(),", "layout, dtype, 1.0,"),
    "a parameter without gradient keeps the last one": (
        BUCKETS, "from == nullptr ? 0 : numel(*member)", "numel(*member)"),
    "the reader is not told to wait": (BUCKETS, "    exchange_->precede(reader);\n", ""),
    "copy to the host does not wait for packing": (
        STAGED, "  way.packed.precede(lanes_->fetches);\n", ""),
    "exchange does not wait for the copy": (STAGED, "    piece.fetched->synchronize();\n", ""),
    "event of the copy to the host left out": (STAGED, "    piece.fetched->record(lanes_->fetches);\n", ""),
    "averaging does not wait for packing": (
        STREAMED, "  packed_[bucket]->precede(own_->averages);\n", ""),
    "the outcome does not wait for the other ranks' news": (STREAMED, "    collect();\n", ""),
    "ranks do not wait for each other's gradients": (IPC, "  wait_for(packed_[index]);\n", ""),
    "the reader does not wait for the other ranks' means": (IPC, "  wait_for(told_);\n", ""),
    "ranks wait for what others have not recorded yet": (IPC, "  comm()->barrier();", "  "),
    "the host does not wait for sums that go to other machines": (
        IPC, "  wait();\n  comm()->sum_over_nodes", "  comm()->sum_over_nodes"),
    "the host does not wait for news that go to other machines": (
        IPC, "  wait();\n  comm()->allreduce", "  comm()->allreduce"),
    "news are overwritten on their way to the device": (
        IPC, "  wait();  // those of the update before", "  // those of the update before"),
    "nobody looks for ranks that have died": (IPC, "{ wait(last()); }", "{}"),
    "MPI does not wait for the device": (
        MPI, "    synchronize(own_->averages);\n    comm_->sum_on_device", "    comm_->sum_on_device"),
    "MPI does not wait for 16 bits as 32": (
        MPI, "  synchronize(own_->averages);\n  comm_->sum_on_device", "  comm_->sum_on_device"),
    "MPI adds without factors": (MPI, "own.weight / reduced.weight)", "1)"),
    "NCCL although ranks share a GPU": (
        CHOICE, "if (!all_different(ranks, &Rank::gpu))", "if (false)"),
    "a way that one rank refuses": (
        CHOICE, "if (*text != '\\0') return", "if (r == 0 && *text != '\\0') return"),
    "other memory than the model's device's": (BUCKETS, "(OnDevice(device), comm", "(OnDevice(0), comm"),
    "an exchange by NCCL that does not end": (
        NCCL_RANKS, "} else if (std::chrono::steady_clock::now() - since_ > clock_time(timeout_)) {",
        "} else if (false) {"),
    "NCCL adds without factors": (NCCL, "if (factor != 1) weighted_sum(", "if (false) weighted_sum("),
    "a rank without weight counts": (SUMS, "    if (factors[s] == 0) continue;\n", ""),
    "facts of the first bucket only": (SUMS, "b < from.buckets; b +=", "b < 1; b +="),
    "values of ranks that do not count": (
        SUMS, "counts && from.value != nullptr ?", "from.value != nullptr ?"),
    "squares of other ranks left out": (
        SUMS, "found.norm += news[r].squares;", "if (r == 0) found.norm += news[r].squares;"),
    "the last rank that is not finite": (SUMS, "if (found.nonfinite_rank < 0 && news", "if (news"),
    "last items of a sum not written": (SUMS, "if (j < count) to[j]", "if (j + 1 < count) to[j]"),
}  # fmt: skip
TESTS = {
    PACK: "pack_kernels",
    BLOCK: "pack_kernels",
    BMM: "bmm_kernels",
    **dict.fromkeys((BUCKETS, STAGED), "device_bucketizer"),
    **dict.fromkeys((STREAMED, IPC, NCCL, MPI, CHOICE, NCCL_RANKS), "device_exchanges"),
    SUMS: "exchange_kernels",
    **dict.fromkeys((FORWARD, BACKWARD, GRADIENTS), "recurrence_kernels"),
}


def cached(build: Path, name: str) -> str:
    found = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    return found[1] if found else ""


def found_in(build: Path, file: str, text: str, folder: Path) -> str:
    """Return how a test fails with this text in place of a file; empty: it does not."""
    changed = folder / "cuda" / file
    changed.parent.mkdir(parents=True)
    changed.write_text(text)
    # A header is compiled with what is tested of it.
    source = changed if changed.suffix != ".h" else ROOT / f"csrc/cuda/{TESTS[file]}.cu"
    sanitizer = cached(build, "FASTSEQ_SANITIZE")
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    compiler, program = cached(build, "CMAKE_CXX_COMPILER"), folder / "test"
    tests = [
        build / "tests" / "cuda" / "CMakeFiles" / f"test_{TESTS[file]}_on_host.dir",
        build / "tests" / "cpp" / "CMakeFiles" / "test_main.dir",
    ]
    objects = [path for part in tests for path in part.rglob("*.o")]
    libraries = [
        build / "tests/cuda_on_host/libfastseq_cuda_on_host.a",
        build / "tests/cuda_on_host/libcuda_on_host.a",
        build / "csrc/core/libfastseq_core.a",
    ]
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-g", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-DCUDA_ON_HOST", *flags,
         "-I", folder, "-I", ROOT / "tests/cuda_on_host/include", "-I", ROOT / "csrc", "-include", "cuda_runtime.h",
         "-x", "c++", "-c", source, "-o", folder / "mutant.o"], check=True,
    )  # fmt: skip
    subprocess.run(
        [compiler, *flags, *objects, folder / "mutant.o", *libraries, "-pthread", "-rdynamic", "-ldl", "-o",
         program], check=True,
    )  # fmt: skip
    ran = subprocess.Popen(
        [program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = ran.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "does not end"
    finally:
        with contextlib.suppress(ProcessLookupError):  # none of its ranks is left
            os.killpg(ran.pid, signal.SIGKILL)
    if ran.returncode == 0:
        return ""
    told = re.compile("WARNING: Thread|ERROR: Address|runtime error|CUDA on the host|^/.*:\\d+:")
    return next(
        (line for line in output.splitlines() if told.search(line)), f"exit status {ran.returncode}"
    )


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
