"""Answer requests together: those that arrive while the model runs form the next batch."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Batcher", "OverloadError"]

_TURNS = 8  # of the event loop without a new request, after which none is on its way


class OverloadError(Exception):
    """Too many records wait already."""


@dataclasses.dataclass
class _Job:
    """One request: its records, and the future of its answers."""

    records: Sequence[Any]
    answers: asyncio.Future[list[Any]]


class Batcher:
    """Runs a function on the records of several requests at once, in one other thread.

    A request that finds the model idle is run at once. While the model runs, others wait, and go
    together afterwards: batches are as large as the load makes them, and nobody waits for a clock.

    Parameters
    ----------
    run
        Takes records, and returns as many answers. If it raises for those of several requests, it
        runs again for each, so that a request fails by its own records alone.
    batchsize
        The most records of several requests in one call; one request may have more.
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
        self._thread = ThreadPoolExecutor(1, "fastseq-model")

    async def answers(self, records: Sequence[Any]) -> list[Any]:
        """Return the answers to the records of one request.

        Raises
        ------
        OverloadError
            Too many records wait.
        TimeoutError
            The answers took too long; the records are not run if they still wait.
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
        self._thread.shutdown(cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                await self._arrived()
                jobs = self._next()
                found = await loop.run_in_executor(self._thread, self._answered, jobs)
                for job, answers in zip(jobs, found, strict=True):
                    if job.answers.done():  # given up
                        continue
                    if isinstance(answers, Exception):
                        job.answers.set_exception(answers)
                    else:
                        job.answers.set_result(answers)
        finally:
            self._worker = None

    async def _arrived(self) -> None:
        """Wait until the requests that have come are read: each takes some turns of the loop."""
        turns, before = 0, 0
        while turns < _TURNS and self._waiting < self._batchsize:
            turns = turns + 1 if self._waiting == before else 0
            before = self._waiting
            await asyncio.sleep(0)

    def _next(self) -> list[_Job]:
        """Take requests that go together, without those given up."""
        jobs: list[_Job] = []
        count = 0
        while self._jobs and (not jobs or count + len(self._jobs[0].records) <= self._batchsize):
            job = self._jobs.popleft()
            self._waiting -= len(job.records)
            if not job.answers.done():
                jobs.append(job)
                count += len(job.records)
        return jobs

    def _answered(self, jobs: Sequence[_Job]) -> list[list[Any] | Exception]:
        """Return each request's answers, or its error."""
        try:
            whole = self._run([record for job in jobs for record in job.records])
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            return [found for job in jobs for found in self._answered([job])]
        ends = iter(whole)
        return [[next(ends) for _ in job.records] for job in jobs]


def _give_up(answers: asyncio.Future[list[Any]]) -> None:
    if not answers.done():
        answers.set_exception(asyncio.TimeoutError())
