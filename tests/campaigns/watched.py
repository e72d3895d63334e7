"""Run what reads a hostile file, and see all that it does: errors, time, memory, files, code."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

__all__ = ["ALLOWED", "Watch", "each", "error_of"]

SECONDS = 10.0
BOUND = 128 << 20
"""Bytes that reading may take besides those that the file has, and those that were asked for."""

ALLOWED = (ValueError, TypeError, OSError)  # what fastseq raises for files is among these
_ADDRESSES = 4 << 30  # more of them than this, and no memory is given: the machine stays usable
_EVENTS = 0x20 | 0x2 | 0x100 | 0x200 | 0x40 | 0x80  # opened, written, created, deleted, moved
_ACTS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove",
         "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod",
         "os.chown", "shutil.", "socket.", "ctypes.dlopen", "pickle.", "urllib.", "ftplib.",
         "http.", "webbrowser.", "code.__new__", "ensurepip", "glob.glob")  # fmt: skip
_PACKAGES = tuple(sysconfig.get_paths()[key] for key in ("purelib", "platlib"))
_OWN = tuple({os.path.realpath(sysconfig.get_paths()[key]) for key in ("stdlib", "purelib", "platlib")} |
             {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2] / "python")} |
             {str(Path(__file__).parent), "/usr/share/zoneinfo", "/proc/", "/sys/", "/dev/null"})  # fmt: skip


class Watch:
    """Runs functions in this process, and raises AssertionError if one does what it must not.

    Parameters
    ----------
    folder
        The folder of the files that are read. Beside it, in ``outside``, are files that must not be
        opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(b"secret" * 100)
        self._events: list[str] | None = None
        self._roots = {name.partition(".")[0] for name in sys.modules}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched = {
            self._libc.inotify_add_watch(self._inotify, os.fsencode(one), _EVENTS): one
            for one in (folder, self.outside)
        }
        faulthandler.enable()
        faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs, and ends
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + _ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self._events is None:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(path, int) or path is None:
                return
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith(_OWN):
                self._events.append(f"open {real} {flags & 3}")
        elif event == "import":
            known = self._roots | set(sys.stdlib_module_names)
            if given[0].partition(".")[0] not in known and not _imported_by_a_package(given[1]):
                self._events.append(f"import {given[0]}")
        elif event == "exec":
            where = getattr(given[0], "co_filename", "?")
            if not os.path.realpath(where).startswith(_OWN) and not where.startswith("<"):
                self._events.append(f"exec {where}")
        elif event.startswith(_ACTS):
            self._events.append(f"{event} {given!r:.200}")

    def run(
        self,
        work: Callable[[], Any],
        *,
        named: Iterable[str] = (),
        acts: tuple[str, ...] = (),
        outside: bool = False,
        room: int = 0,
    ) -> tuple[Any, Exception | None]:
        """Return what `work` returns, or its error.

        Parameters
        ----------
        work
            What reads.
        named
            Names of the files in the folder that may be opened.
        acts
            Events that are no fault.
        outside
            Whether the documentation says that other files are read, as HDF5's links are.
        room
            Bytes that were asked for.
        """
        self._opened()
        Path("/proc/self/clear_refs").write_text("5")
        before = _peak()
        self._events = []
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        found, error = None, None
        try:
            found = work()
        except Exception as caught:
            error = caught
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            events, self._events = self._events, None
        grown = _peak() - before
        allowed = {os.path.realpath(self.folder / name) for name in named}
        wrong = [
            event
            for event in events
            if not event.startswith(acts or "-")
            and not (event.startswith("open ") and event.split()[1] in allowed)
        ]
        opened = {where for where in self._opened() if os.path.realpath(where) not in allowed}
        if outside:
            opened = set()
        assert not wrong, f"it did {wrong}, then {error!r}"
        assert not opened, f"it opened {opened}, then {error!r}"
        assert grown <= BOUND + room, f"it took {grown >> 20} MiB of memory, then {error!r}"
        return found, error

    def _opened(self) -> set[str]:
        """Return what has been opened, by native code, too, since the last call."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._inotify, 1 << 16):
                at = 0
                while at < len(data):
                    watch, _, _, length = struct.unpack_from("iIII", data, at)
                    name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                    if name:
                        found.add(str(self._watched[watch] / os.fsdecode(name)))
                    at += 16 + length
        return found - {str(self.outside)}


def _imported_by_a_package(file: str | None) -> bool:
    """Whether code of an installed package imports, as pyarrow looks for what it can work with.

    Its statements do; what a file names, our code or importlib would import. `file` is that of an
    extension that is loaded.
    """
    if file is not None:
        return os.path.realpath(file).startswith(_OWN)
    code = sys._getframe(2).f_code  # extensions have no frames of their own
    return code.co_filename.startswith(_PACKAGES) or (
        code.co_filename == "<frozen importlib._bootstrap>"
        and code.co_name == "_call_with_frames_removed"
    )


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def error_of(error: Exception, *names: str, untouched: bool = False) -> str:
    """Return the kind of an error; raise unless it is one that a file may give, and names it.

    `untouched`: torch may have been asked for more memory than there is, which it then would not
    have written to.
    """
    chain: list[str] = []
    one: BaseException | None = error
    while one is not None:
        chain.append(f"{type(one).__name__}: {one}"[:300])
        assert not isinstance(one, MemoryError), f"memory was asked for without end: {chain}"
        assert untouched or "allocate memory" not in str(one), (
            f"memory was asked for without end: {chain}"
        )
        one = one.__cause__ or one.__context__
    if not isinstance(error, ALLOWED):
        raise AssertionError(f"not an error of ours: {chain}") from error
    text = str(error)
    assert len(text) < 2000, f"a long message: {text}"
    if not any(name in text for name in names):
        raise AssertionError(f"the file is not named: {chain}") from error
    return "refused"


def each(number: int, count: int) -> Iterator[tuple[int, Random]]:
    """Yield the numbers of a case's executions, each with its own random numbers.

    All but one are left out if the environment's ONLY has its number.
    """
    only = os.environ.get("ONLY")
    for one in range(count) if only is None else [int(only)]:
        print(one, end=" ", flush=True)  # which it was, if the process dies
        yield one, Random(f"{number} {one}")  # noqa: S311
