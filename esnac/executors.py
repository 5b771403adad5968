"""Where evaluations run. The search loop sees only this contract."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol[Job, Result]):
    """Runs jobs (plain data) somewhere and hands back their results in any order.

    The driver alone calls these methods, from one thread. `collect` blocks until at least one
    submitted job has ended; a job that raises is a fault of the work function, which is expected to
    return failures as results.
    """

    def submit(self, job: Job) -> None: ...

    def collect(self) -> list[tuple[Job, Result]]: ...

    def close(self) -> None: ...


class SerialExecutor(Generic[Job, Result]):
    """One job after the other in this process, in the order of submission."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def collect(self) -> list[tuple[Job, Result]]:
        if not self._queue:
            return []
        job = self._queue.popleft()
        return [(job, self._work(job))]

    def close(self) -> None:
        self._queue.clear()
