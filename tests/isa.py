"""Runs the tests in which numbers matter under smaller instruction sets than the machine has.

``python tests/isa.py`` runs all settings, ``python tests/isa.py "all smallest"`` those named, ``--quick`` one over the most
telling files.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

SMALLEST = {
    "fastseq baseline": {"FASTSEQ_ISA": "baseline"},
    "torch default": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "MKL SSE4_2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
AVX2 = {
    "fastseq x86-64-v3": {"FASTSEQ_ISA": "x86-64-v3"},
    "torch avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def together(settings: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: value for each in settings.values() for name, value in each.items()}


SETTINGS = {
    "all smallest": together(SMALLEST), "all AVX2": together(AVX2), **SMALLEST, **AVX2,
}  # fmt: skip

QUICK = [
    "ops",
    "precision",
    "stateful",
    "optimizers_in_fit",
    "params",
    "recurrent_layers",
]
# About files, processes, tools and pictures; numbers are not what matters there.
OTHERS = (
    "builds", "callback_protocol", "callbacks_files", "checkpoint_", "cuda", "docs", "drawn_runs",
    "forecast_plot", "gpu_check", "h5_", "history", "layers", "mapped", "memory", "mpi_", "reader_stops",
    "saving_files", "threads", "trackers", "tuning", "watching",
)  # fmt: skip
FILES = [
    path.stem.removeprefix("test_")
    for path in sorted(HERE.glob("python/test_*.py"))
    if not path.stem.removeprefix("test_").startswith(OTHERS)
]


def passes(setting: str, names: list[str]) -> bool:
    variables = SETTINGS[setting]
    print(f"\n== {setting}: {' '.join(map('='.join, variables.items()))}", flush=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-n",
        "2",
        "--dist",
        "worksteal",
    ]
    if names is QUICK:
        command += ["-k", "not compiles_into_one_graph"]  # long
    command += [str(HERE / "python" / f"test_{name}.py") for name in names]
    # torch's cache knows nothing of these variables, and code for other vectors corrupts memory.
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | variables | {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch"}
        return (
            subprocess.run(command, env=env | {"OMP_NUM_THREADS": "1"}, check=False).returncode == 0
        )


def main() -> None:
    if platform.machine() != "x86_64":
        print("not run: these are instruction sets of x86-64")
        return
    quick = sys.argv[1:] == ["--quick"]
    chosen = ["all smallest"] if quick else sys.argv[1:] or [*SETTINGS]
    failed = [setting for setting in chosen if not passes(setting, QUICK if quick else FILES)]
    if failed:
        sys.exit(f"tests fail under {', '.join(failed)}")


if __name__ == "__main__":
    main()
