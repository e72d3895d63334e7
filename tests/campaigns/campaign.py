"""What every campaign needs: drawn cases, each in a process of its own, counted and kept on disk.

A campaign is a function ``case(number, folder)`` that draws what it does from its number, raises if
a promise is broken, and else returns in a word what it was, or how often it did what: cases that
take less than forking does are done many at a time. Each call runs in a process forked from
one that has imported all that is needed, as the leader of a session of its own, in an empty folder:
it may kill, stop and fork what it likes. When it ends, or at its time limit, all that it started is
killed. Then nothing of it may be left in shared memory.

What was done is kept in ``build/campaigns/NAME.json``, so that a campaign goes on where it was
stopped; ``--again`` begins at the first case. Failed cases are listed with their output, and
``--case N`` runs one of them and shows what it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STATE = ROOT / "build" / "campaigns"
RESULTS = ROOT / "bench" / "results"
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "python")]

from harness import circumstances  # noqa: E402

Case = Callable[[int, Path], "str | Mapping[str, int]"]
_SHARED = Path("/dev/shm")  # noqa: S108
_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of a case become our children


@dataclasses.dataclass
class Campaign:
    """A campaign, and what it has come to.

    Parameters
    ----------
    name
        Its name, and that of its files.
    case
        What is done for each number.
    wanted
        How many cases are to be done in all.
    limit
        Seconds that one case may take; longer counts as a hang.
    promise
        What the cases show, in a sentence: for the page of results.
    """

    name: str
    case: Case
    wanted: int
    limit: float
    promise: str
    done: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    folder: Path = STATE

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.name}.json"

    def load(self) -> None:
        """Go on from what an earlier call has kept, if it has."""
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(self._file.read_text())
            for key in ("done", "seconds", "kinds", "failures"):
                setattr(self, key, kept[key])

    def keep(self) -> None:
        """Write what has been done so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {
            "campaign": self.name, "promise": self.promise, "wanted": self.wanted,
            "done": self.done, "executions": sum(self.kinds.values()),
            "seconds": round(self.seconds, 1),
            "kinds": dict(sorted(self.kinds.items())), "failures": self.failures,
            "circumstances": circumstances(),
        }  # fmt: skip
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(kept, indent=1) + "\n")
        new.replace(self._file)

    def publish(self) -> None:
        """Copy what has been done to the results that documents show."""
        self.keep()
        shutil.copy(self._file, RESULTS / f"campaign-{self.name}.json")

    def run(self, minutes: float, jobs: int, most: int | None = None) -> None:
        """Do cases, some at a time, until the time is over or enough are done."""
        ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)
        start, before, shared = time.monotonic(), self.seconds, _shared_memory()
        end = start + 60 * minutes
        stop_at = self.wanted if most is None else min(self.done + most, self.wanted)
        running: list[_Running] = []
        finished: dict[int, None] = {}
        first, following = self.done, self.done
        kept = start
        while running or (following < stop_at and time.monotonic() < end):
            while len(running) < jobs and following < stop_at and time.monotonic() < end:
                running.append(_Running(following, self.case, self.limit))
                following += 1
            for one in [one for one in running if one.ended()]:
                running.remove(one)
                self._count(one)
                finished[one.number] = None
            while self.done in finished:
                del finished[self.done]
                self.done += 1
            self.seconds = before + time.monotonic() - start
            if time.monotonic() - kept > 10:
                kept = time.monotonic()
                self.keep()
                print(f"\r{self.name}: {self.done} of {self.wanted}", end="", flush=True)
            time.sleep(0.002)
        assert self.done == following
        if left := _shared_memory() - shared:
            self.failures.append({"case": None, "output": f"left in shared memory: {left}"})
        self.keep()
        speed = (self.done - first) / max(self.seconds - before, 1e-9)
        print(
            f"\r{self.name}: {self.done} of {self.wanted} cases, {len(self.failures)} failed, "
            f"{speed:.1f} a second: {self.kinds}"
        )

    def _count(self, one: _Running) -> None:
        kinds, output = one.result()
        if kinds is None:
            self.failures.append({"case": one.number, "output": output[-4000:]})
            print(f"\n{self.name}: case {one.number} FAILED\n{output[-4000:]}", flush=True)
        else:
            for kind, count in kinds.items():
                self.kinds[kind] = self.kinds.get(kind, 0) + count


class _Running:
    """A case in a process of its own."""

    def __init__(self, number: int, case: Case, limit: float) -> None:
        self.number = number
        self._folder = Path(tempfile.mkdtemp(prefix=f"case-{number}-"))
        self._limit = limit
        self._end = time.monotonic() + limit
        self._late = False
        self._status: int | None = None
        sys.stdout.flush()
        self._process = os.fork()
        if not self._process:
            self._be(case)

    def _be(self, case: Case) -> None:
        """Do the case and end; this is the forked process."""
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs ignore it
            output = os.open(self._folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            work = self._folder / "work"
            work.mkdir()
            os.chdir(work)
            kind = case(self.number, work)
            counts = {kind: 1} if isinstance(kind, str) else dict(kind)
            (self._folder / "kinds").write_text(json.dumps(counts))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        if self._status is None:
            found, status = os.waitpid(self._process, os.WNOHANG)
            if found:
                self._status = status
            elif time.monotonic() > self._end:
                self._late = True
                os.kill(self._process, signal.SIGKILL)
                _, self._status = os.waitpid(self._process, 0)
        return self._status is not None

    def result(self) -> tuple[dict[str, int] | None, str]:
        """Return how often it was what, or None and what is wrong; end what the case started."""
        left = _end_session(self._process)
        output = (self._folder / "output").read_text(errors="replace") if self._started() else ""
        wrong = ""
        if self._late:
            wrong = f"a hang: it took more than {self._limit:g} s"
        elif self._status:
            wrong = f"ended with status {self._status}"
        elif left:
            wrong = f"processes were left: {left}"
        kinds = self._folder / "kinds"
        found = json.loads(kinds.read_text()) if not wrong and kinds.exists() else None
        shutil.rmtree(self._folder, ignore_errors=True)
        return found, f"{output}\n{wrong}".strip()

    def _started(self) -> bool:
        return (self._folder / "output").exists()


def _end_session(session: int) -> list[int]:
    """Kill and reap what is left of a session; return which processes these were."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for process in found:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
    return found


def _shared_memory() -> set[str]:
    return set(os.listdir(_SHARED)) if _SHARED.exists() else set()


def main(campaigns: list[Campaign]) -> None:
    """Run the campaigns of a file as the command line wants it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=f"of {[c.name for c in campaigns]}; none: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for each campaign")
    parser.add_argument("--cases", type=int, help="at most so many cases of each now")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--again", action="store_true", help="from the first case on")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of what has been done")
    parser.add_argument("--case", type=int, help="run this case alone, here, and show its output")
    parser.add_argument("--publish", action="store_true", help=f"copy the counts to {RESULTS}")
    options = parser.parse_args()
    chosen = [c for c in campaigns if not options.names or c.name in options.names]
    if not chosen:
        parser.error(f"no such campaign: {options.names}")
    failed = 0
    for campaign in chosen:
        if options.case is not None:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                os.chdir(folder)
                print(campaign.case(options.case, Path(folder)))
                os.chdir(ROOT)
            continue
        campaign.folder = options.state
        if not options.again:
            campaign.load()
        before = len(campaign.failures)
        campaign.run(options.minutes, options.jobs, options.cases)
        failed += len(campaign.failures) - before
        if options.publish:
            campaign.publish()
    sys.exit(1 if failed else 0)
