"""Programs of which each single call of the system fails in turn, in each way in which it can.

A library that is loaded before all others (fail_nth.c) counts the calls of a program that is not
disturbed. From this come all cases: a program, a kind of call, which of these calls, and its error.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parents[2] / "build" / "campaigns" / "fail_nth.so"


def build() -> None:
    """Compile the library, if its source is newer."""
    source = Path(__file__).with_name("fail_nth.c")
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > source.stat().st_mtime:
        return
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    new = LIBRARY.with_suffix(f".{os.getpid()}.new")
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fexceptions"]
    command = ["cc", *flags, "-o", new, source, "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    new.replace(LIBRARY)


NATIVE = ctypes.CDLL(None)
if not hasattr(NATIVE, "fail_nth_arm"):
    if __name__ != "__main__":
        raise ImportError("run system_calls.py as a program: it loads a library before all others")
    build()
    os.execve(  # noqa: S606
        sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": str(LIBRARY)}
    )
os.environ.pop("LD_PRELOAD")  # not for programs that are started here

import h5py  # noqa: E402
import torch  # noqa: E402
import tqdm  # noqa: E402
from campaign import Campaign, main  # noqa: E402

torch.set_num_threads(1)
tqdm.tqdm.monitor_interval = 0  # no thread

from faulted_programs import PROGRAMS, Fault, Program, Ranks, is_ours, same  # noqa: E402

SHORT = -1  # a transfer of half of the bytes
# Kinds of calls, in the order of fail_nth.c, and the errors that they may have.
KINDS = {
    "open": [errno.EMFILE, errno.EACCES, errno.EIO, errno.EINTR],
    "create": [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EINTR],
    "read": [errno.EIO, errno.EINTR, SHORT],
    "pread": [errno.EIO, errno.EINTR, SHORT],
    "preadv2": [errno.EIO, errno.EAGAIN, errno.EINTR, errno.EOPNOTSUPP, SHORT],
    "write": [errno.EIO, errno.ENOSPC, errno.EINTR, SHORT],
    "pwrite": [errno.EIO, errno.ENOSPC, errno.EINTR, SHORT],
    "fsync": [errno.EIO, errno.ENOSPC, errno.EINTR],
    "rename": [errno.EIO, errno.EACCES, errno.ENOSPC],
    "mmap": [errno.ENOMEM, errno.EAGAIN],
    "memfd_create": [errno.EMFILE, errno.ENOMEM],
    "reserve": [errno.ENOSPC, errno.EINTR],
    "close": [errno.EIO, errno.ENOSPC],
    "flock": [errno.EAGAIN, errno.ENOLCK, errno.EINTR],
    "thread": [errno.EAGAIN],
    "malloc": [errno.ENOMEM],
    "tensor": [errno.ENOMEM],
}
NAMES = list(KINDS)
COUNT = -1


class OneCall(Fault):
    """The n-th call of a kind fails; or with the kind `COUNT`, none does."""

    def __init__(self, kind: int, n: int, error: int, uncached: bool) -> None:
        self._args = kind, ctypes.c_long(n), error, int(uncached)

    def arm(self) -> None:
        gc.collect()
        NATIVE.fail_nth_arm(*self._args)

    def disarm(self) -> None:
        fired = NATIVE.fail_nth_disarm()
        self.report = fired, [NATIVE.fail_nth_count(i) for i in range(len(NAMES))]


def left_open(folder: Path) -> set[str]:
    """Return what this process has open: files, and threads by their names."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{fd}"):
            name = os.readlink(f"/proc/self/fd/{fd}").replace(str(folder), "")
            found.add(name)
    for task in os.listdir("/proc/self/task"):
        name = Path(f"/proc/self/task/{task}/comm")
        found |= {name.read_text()} if name.exists() else set()
    return found


def undisturbed(program: Program) -> tuple[Any, list[int], set[str]]:
    """Return a program's result, its numbers of calls, and what it leaves open."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                program.prepare(folder)
                fault = OneCall(COUNT, 0, 0, program.uncached)
                result = program.run(folder, fault)
                if fault.report is None:
                    fault.disarm()
                gc.collect()
                told = pickle.dumps((result, fault.report[1], left_open(folder)))
            with os.fdopen(writer, "wb") as file:
                file.write(told)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    os.waitpid(process, 0)
    return pickle.loads(told)  # noqa: S301


def warm_up() -> None:
    """Run programs once, as Python imports much when it is first used."""
    for program in PROGRAMS.values():
        if not isinstance(program, Ranks):
            with tempfile.TemporaryDirectory() as folder:
                program.prepare(Path(folder))
                program.run(Path(folder), Fault())
    gc.collect()


warm_up()
UNDISTURBED = {name: undisturbed(program) for name, program in PROGRAMS.items()}
# Mixed, so that a part of them is a sample.
PLAN = sorted(
    (
        (name, kind, n + 1, error)
        for name, (_, counts, _) in UNDISTURBED.items()
        for kind, count in zip(NAMES, counts, strict=True)
        for n in range(count)
        for error in KINDS[kind]
    ),
    key=lambda one: zlib.crc32(repr(one).encode()),
)


def case(number: int, folder: Path) -> str:
    """Let one call fail, look at what comes of it, and run the program again."""
    name, kind, n, error = PLAN[number]
    program = PROGRAMS[name]
    print(f"{name}: call {n} of {kind} fails: {'short' if error == SHORT else os.strerror(error)}")
    program.prepare(folder)
    wanted, _, stays = UNDISTURBED[name]
    before = left_open(folder)
    fault = OneCall(NAMES.index(kind), n, error, program.uncached)
    found = outcome(program, folder, fault, wanted, kind, error)
    assert fault.report[0] or found == "same result", (fault.report, found)
    gc.collect()
    end = time.monotonic() + 2
    while left := left_open(folder) - before - stays:
        assert time.monotonic() < end, f"left open: {left}"
        time.sleep(0.01)
    program.check_files(folder)
    assert same(program.run(folder, Fault()), wanted), "another result afterwards"
    gc.collect()
    libhdf5().H5close()  # as at exit
    return found if fault.report[0] else "no such call"


def outcome(
    program: Program, folder: Path, fault: OneCall, wanted: Any, kind: str, error: int
) -> str:
    """Run a program with a fault; return what comes of it in a word."""
    try:
        result = program.run(folder, fault)
        if fault.report is None:
            fault.disarm()
    except Exception as raised:
        if fault.report is None:
            fault.disarm()
        if not expected(raised, kind, error):
            raise
        return type(raised).__name__
    assert same(result, wanted), "another result"
    return "same result"


def expected(raised: BaseException, kind: str, error: int) -> bool:
    """Return whether an exception is one that the fault may cause, and tells of it."""
    told = str(raised)
    if kind == "tensor" and isinstance(raised, RuntimeError):  # PyTorch's, also to an operator
        return "can't allocate memory" in told or "aoti_torch_empty_strided" in told
    if kind == "thread" and type(raised) is RuntimeError and "new thread" in told:  # Python's
        return True
    if kind == "malloc" and type(raised) is BufferError:  # pybind11's
        return True
    return is_ours(raised) and (not isinstance(raised, OSError) or tells_of(raised, error))


def tells_of(raised: BaseException | None, error: int) -> bool:
    """Return whether an exception, or one that led to it, names an error of the system."""
    while raised is not None:
        if getattr(raised, "errno", None) == error or os.strerror(error) in str(raised):
            return True
        raised = raised.__cause__ or raised.__context__
    return False


def libhdf5() -> Any:
    """Return h5py's library."""
    folder = Path(h5py.__file__).parent.with_name("h5py.libs")
    return ctypes.CDLL(str(next(folder.glob("libhdf5-*"), "libhdf5.so")))


CAMPAIGNS = [
    Campaign(
        "system-calls", case, len(PLAN), 60.0,
        "whichever system call fails, a program either succeeds with the same result or raises "
        "an error that says so; each file is the complete old or new version, and the same "
        "program succeeds afterwards",
    )
]  # fmt: skip

if __name__ == "__main__":
    main(CAMPAIGNS)
