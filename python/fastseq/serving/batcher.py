"""Answer requests together: those that arrive while the model runs form the next batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._util.threads import Thread

__all__ = ["Batcher", "OverloadError"]

_LOG = logging.getLogger(__name__)
_TURNS = 8  # of the event loop without a new request, after which none is on its way


class OverloadError(Exception):
    """Too many records wait already."""


class _Job:
    """One request: its records, the answers found, and the future of all of them."""

    def __init__(self, records: Sequence[Any], answers: asyncio.Future[list[Any]]) -> None:
        self.records, self.answers = records, answers
        self.found: list[Any] = []

    @property
    def left(self) -> Sequence[Any]:
        """The records without an answer."""
        return self.records[len(self.found) :]


class Batcher:
    """Runs a function on the records of several requests at once, in one other thread.

    A request that finds the model idle is run at once. While the model runs, others wait, and go
    together afterwards: batches are as large as the load makes them, and nobody waits for a clock.
    A long request is run in parts, between which it can be given up.

    Parameters
    ----------
    run
        Takes records, and returns as many answers. If it raises for those of several requests, it
        runs again for each, so that a request fails by its own records alone.
    batchsize
        The most records in one call.
    waiting
        The most records that wait.
    timeout
        Seconds after which a request is given up.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], list[Any]],
        *,
        batchsize: int,
        waiting: int,
        timeout: float,
    ) -> None:
        self._run = run
        self._batchsize, self._most, self._timeout = batchsize, waiting, timeout
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._worker: asyncio.Task[None] | None = None
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # a daemon, so that the program can end while the model runs
        Thread(self._call, daemon=True).start()

    async def answers(self, records: Sequence[Any]) -> list[Any]:
        """Return the answers to the records of one request.

        Raises
        ------
        OverloadError
            Too many records wait.
        TimeoutError
            The answers took too long; what has not been run of it is left.
        Exception
            What `run` raised.
        """
        if self._jobs and self._waiting + len(records) > self._most:
            raise OverloadError
        loop = asyncio.get_running_loop()
        job = _Job(records, loop.create_future())
        self._jobs.append(job)
        self._waiting += len(records)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        alarm = loop.call_later(self._timeout, _give_up, job.answers)
        try:
            return await job.answers
        finally:
            alarm.cancel()

    def close(self) -> None:
        """End the thread, after what runs."""
        self._calls.put(None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                await self._arrived()
                parts = self._next()
                done: asyncio.Future[list[list[Any] | Exception]] = loop.create_future()
                self._calls.put(([records for _, records in parts], loop, done))
                for (job, _), answers in zip(parts, await done, strict=True):
                    self._take(job, answers)
        finally:
            self._worker = None

    async def _arrived(self) -> None:
        """Wait until the requests that have come are read: each takes some turns of the loop."""
        turns, before = 0, 0
        while turns < _TURNS and self._waiting < self._batchsize:
            turns = turns + 1 if self._waiting == before else 0
            before = self._waiting
            await asyncio.sleep(0)

    def _next(self) -> list[tuple[_Job, Sequence[Any]]]:
        """Take requests that go together, without those given up, or a part of a long one."""
        parts: list[tuple[_Job, Sequence[Any]]] = []
        room = self._batchsize
        while self._jobs and room:
            job = self._jobs[0]
            if job.answers.done():  # given up, or a part of it has failed
                self._jobs.popleft()
                self._waiting -= len(job.left)
                continue
            records = job.left[:room]
            if parts and len(records) < len(job.left):
                break  # a long one begins with a batch of its own
            if len(records) == len(job.left):
                self._jobs.popleft()
            parts.append((job, records))
            room -= len(records)
            self._waiting -= len(records)
        return parts

    def _take(self, job: _Job, answers: list[Any] | Exception) -> None:
        """Take the answers to a part of a request."""
        if isinstance(answers, Exception):
            if not job.answers.done():
                job.answers.set_exception(answers)
            return
        job.found += answers
        if not job.left and not job.answers.done():
            job.answers.set_result(job.found)

    def _call(self) -> None:
        """Run what is asked for, in the other thread."""
        while (asked := self._calls.get()) is not None:
            parts, loop, done = asked
            with _logged_warnings():
                answers = self._answered(parts)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_set, done, answers)

    def _answered(self, parts: Sequence[Sequence[Any]]) -> list[list[Any] | Exception]:
        """Return each part's answers, or its error."""
        if not parts:
            return []
        try:
            whole = self._run([record for part in parts for record in part])
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [found for part in parts for found in self._answered([part])]
        every = iter(whole)
        return [[next(every) for _ in part] for part in parts]


@contextlib.contextmanager
def _logged_warnings() -> Iterator[None]:
    """Log what a model warns of: Python would keep each text, and clients may send many."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(one.message) for one in told):
        _LOG.warning("%s", text)


def _set(done: asyncio.Future[Any], answers: Any) -> None:
    if not done.done():
        done.set_result(answers)


def _give_up(answers: asyncio.Future[list[Any]]) -> None:
    if not answers.done():
        answers.set_exception(asyncio.TimeoutError())
