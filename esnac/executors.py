"""Where evaluations run. The search loop sees only this contract."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol[Job, Result]):
    """Runs jobs (plain data) somewhere and hands back their results in any order.

    The driver alone calls these methods, from one thread. `submit` is for a `free` worker.
    `collect` blocks until a submitted job has ended or something else may be done; a job that
    raises is a fault of the work function, which is expected to return failures as results.
    """

    @property
    def free(self) -> bool: ...

    def submit(self, job: Job) -> None: ...

    def collect(self) -> list[tuple[Job, Result]]: ...


class SerialExecutor(Generic[Job, Result]):
    """One job after the other in this process."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work
        self._jobs: list[Job] = []

    @property
    def free(self) -> bool:
        return not self._jobs

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def collect(self) -> list[tuple[Job, Result]]:
        jobs, self._jobs = self._jobs, []
        return [(job, self._work(job)) for job in jobs]


@dataclass(frozen=True)
class Later(Generic[Result]):
    """A result that is there once `ready` says so."""

    value: Result
    ready: Callable[[], bool]

    def done(self) -> bool:
        return self.ready()

    def result(self) -> Result:
        return self.value


class SimulatedExecutor(Generic[Job, Result]):
    """Many workers on a simulated clock: an evaluation takes no time but `seconds(job)` of it.

    The driver's own computing counts with its measured time. `background` starts a call of the
    driver that runs beside everything else, as in a thread: its result is there once the clock has
    gone on by the time it took.
    """

    def __init__(
        self, work: Callable[[Job], Result], seconds: Callable[[Job], float], workers: int
    ) -> None:
        self._work, self._seconds, self._workers = work, seconds, workers
        #: (time, order, job), the job None where a call in the background ends.
        self._events: list[tuple[float, int, Job | None]] = []
        self._order = itertools.count()
        self._running = 0
        self._clock = 0.0
        self._since = time.perf_counter()
        self._spans: list[tuple[float, float]] = []

    @property
    def clock(self) -> float:
        """Simulated seconds since the start."""
        now = time.perf_counter()
        self._clock += now - self._since
        self._since = now
        return self._clock

    @property
    def free(self) -> bool:
        return self._running < self._workers

    def submit(self, job: Job) -> None:
        start = self.clock
        end = start + self._seconds(job)
        heapq.heappush(self._events, (end, next(self._order), job))
        self._spans.append((start, end))
        self._running += 1

    def collect(self) -> list[tuple[Job, Result]]:
        if not self._events:
            return []
        ends, _, job = heapq.heappop(self._events)
        self._clock = max(self.clock, ends)
        if job is None:
            return []
        self._running -= 1
        result = self._work(job)
        self._since = time.perf_counter()  # the worker's own computing is simulated
        return [(job, result)]

    def busy_fraction(self) -> float:
        """The share of the workers' time that was busy, until the last job was handed out."""
        last = max(start for start, _ in self._spans)
        busy = sum(min(end, last) - start for start, end in self._spans)
        return busy / (last * self._workers)

    def background(self, call: Callable[[], Result]) -> Later[Result]:
        start = self.clock
        result = call()
        now = time.perf_counter()
        ends = start + now - self._since
        self._since = now
        heapq.heappush(self._events, (ends, next(self._order), None))
        return Later(result, lambda: self.clock >= ends)
