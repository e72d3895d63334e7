"""A wheel built by nvcc beside a CUDA build of PyTorch: what is in it, and that it loads without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.14.1"  # brings its CUDA libraries: gigabytes
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def leave(reason: str) -> None:
    if os.environ.get("FASTSEQ_REQUIRE_CUDA") == "1":
        pytest.fail(f"FASTSEQ_REQUIRE_CUDA=1, but {reason}")
    pytest.skip(reason)


def said(*command: str | Path, **environment: str) -> str:
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert ran.returncode == 0, f"{command}:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        leave("there is no nvcc")
    return str(found)


@pytest.fixture(scope="module")
def python(nvcc, tmp_path_factory):
    """Python of a fresh environment with a CUDA build of PyTorch; all else is this environment's."""
    folder = tmp_path_factory.mktemp("cuda")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    try:
        command = [python, "-m", "pip", "install", "--quiet", "--no-compile", TORCH]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            leave(f"pip cannot install {TORCH}: {installed.stderr.strip().splitlines()[-1]}")
        cuda = said(python, "-W", "ignore", "-c", "import torch; print(torch.version.cuda)").strip()
        toolkit = re.findall(r"release ([\d.]+)", said(nvcc, "--version"))[0]
        if cuda.split(".")[0] != toolkit.split(".")[0]:
            leave(f"nvcc is of CUDA {toolkit}, and {TORCH} of CUDA {cuda}")
        site = next(folder.glob("lib/python*/site-packages"))
        own = [path for path in sys.path if path.endswith("site-packages")]
        (site / "own.pth").write_text("\n".join(own))
        yield python
    finally:
        shutil.rmtree(folder)  # pytest would keep it


@pytest.fixture(scope="module")
def wheel(python, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    said(
        python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder,
        # that shortens the build of what runs on the CPU
        "--config-settings=cmake.define.CMAKE_CXX_FLAGS=-DFASTSEQ_NO_MULTIVERSION",
        f"--config-settings=build-dir={folder / 'build'}", ROOT,
    )  # fmt: skip
    said(python, "-m", "pip", "install", "--no-deps", "--no-index", *folder.glob("*.whl"))
    return next(folder.glob("*.whl"))


def test_the_kernels_are_those_of_each_generation_of_gpus(nvcc, python, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as parts:
        modules = [name for name in parts.namelist() if Path(name).name.startswith("_cuda.")]
        module = next(name for name in modules if name.endswith(".so"))
        parts.extract(module, tmp_path)
    tool = shutil.which("cuobjdump") or next(python.parents[1].rglob("bin/cuobjdump"))

    def found(what: str) -> set[int]:
        listed = said(tool, f"--list-{what}", tmp_path / module)
        return set(map(int, re.findall(r"\.sm_(\d+)", listed)))

    known = sorted(map(int, re.findall(r"sm_(\d+)", said(nvcc, "--list-gpu-code"))))
    generations = {known[0], *(number for number in known if number % 10 == 0)}
    assert found("elf") == generations
    assert found("ptx") == {max(generations)}


CALLS = """
import torch
from torch._subclasses import FakeTensorMode
import fastseq as fs
from fastseq import _cuda, _cuda_comm
from fastseq.nn.ops import pack, pack_checked, unpack

print(fs.__file__)
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastseq::")]
print(*sorted(name for name in names if has_kernel(name, "CUDA")))
with FakeTensorMode():
    a = torch.empty(5, 2, 3, device="cuda", dtype=torch.float16)
    b = torch.empty(5, 3, 4, device="cuda", dtype=torch.float16)
    flat, facts = pack_checked([a, b], 64, 0.5, torch.float32)
    for t in torch.ops.fastseq.bmm(a, b), pack([a, b]), *unpack(pack([a, b]), [30, 60]), flat, facts:
        print(t.device, t.dtype, tuple(t.shape))
"""


def test_the_operators_are_registered_and_take_fake_tensors(python, wheel):
    lines = said(python, "-W", "ignore", "-c", CALLS).splitlines()
    assert str(python.parents[1]) in lines[0]
    sources = "\n".join(path.read_text() for path in (ROOT / "csrc/torch").glob("*cuda*.cpp"))
    registered = re.findall(r'm\.impl\("(\w+)"', sources)
    assert len(registered) >= 4
    assert lines[1].split() == sorted(f"fastseq::{name}" for name in registered)
    half, single = "cuda:0 torch.float16", "cuda:0 torch.float32"
    assert lines[2:] == [
        f"{half} (5, 2, 4)", f"{half} (90,)", f"{half} (30,)", f"{half} (60,)", f"{single} (96,)",
        "cuda:0 torch.float64 (2,)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cuda", "settings", "message"),
    [
        (None, ["CUDA=ON"], "FASTSEQ_CUDA=ON, but PyTorch 2.12.0 is a build for the CPU"),
        ("9.2", ["CUDA=ON"], r"FASTSEQ_CUDA=ON, but nvcc is of CUDA [\d.]+, PyTorch of CUDA 9.2"),
        ("9.2", ["CUDA=AUTO"], r"nvcc is of CUDA [\d.]+, PyTorch of CUDA 9.2: no CUDA kernels are"),
    ],
)
def test_a_build_says_why_it_cannot_have_the_kernels(nvcc, tmp_path, cuda, settings, message):
    (tmp_path / "torch.py").write_text(
        f"class version:\n    cuda = {cuda!r}\n__version__ = '2.12.0'\n"
    )
    options = [f"-DFASTSEQ_{setting}" for setting in ("PYTHON=OFF", "MPI=OFF", *settings)]
    ran = subprocess.run(
        [str(shutil.which("cmake")), "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", "-DSKBUILD=2",
         f"-DPython_EXECUTABLE={sys.executable}", *options],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(message, " ".join(ran.stderr.split())), ran.stderr
    assert (ran.returncode == 0) == ("CUDA=AUTO" in settings)
