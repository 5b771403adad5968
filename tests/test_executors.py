"""The serial executor, and the simulated one on a clock that the tests set by hand."""

from __future__ import annotations

import types

import pytest

from esnac import executors
from esnac.executors import SerialExecutor, SimulatedExecutor


class Time:
    """What the driver's own computing is measured with."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    known = Time()
    monkeypatch.setattr(executors, "time", types.SimpleNamespace(perf_counter=known.perf_counter))
    return known


def lasting(job: float) -> float:
    """Jobs are their own durations."""
    return job


def test_a_job_runs_when_its_result_is_collected() -> None:
    seen: list[int] = []

    def work(job: int) -> int:
        seen.append(job)
        return job * 10

    executor = SerialExecutor(work)
    assert executor.free
    executor.submit(3)
    assert not executor.free
    assert seen == []
    assert executor.collect() == [(3, 30)]
    assert seen == [3]
    assert executor.free
    assert executor.collect() == []


def test_jobs_end_in_the_order_of_the_simulated_clock(time: Time) -> None:
    """Worker 1: 0-4 and 4-9; worker 2: 0-6 and 6-9. Of two that end together the earlier first."""
    executor = SimulatedExecutor(lambda job: -job, lasting, workers=2)
    ended = []
    executor.submit(4.0)
    assert executor.free
    executor.submit(6.0)
    assert not executor.free
    for new in (5.0, 3.0):
        ended += [(executor.clock, executor.collect(), executor.clock)]
        assert executor.free
        executor.submit(new)
        assert not executor.free
    ended += [(executor.clock, executor.collect(), executor.clock) for _ in range(2)]
    assert ended == [
        (0, [(4, -4)], 4), (4, [(6, -6)], 6), (6, [(5, -5)], 9), (9, [(3, -3)], 9),
    ]  # fmt: skip
    assert executor.collect() == []
    assert executor.clock == 9


def test_the_drivers_time_counts_and_the_workers_own_does_not(time: Time) -> None:
    def work(job: float) -> None:
        time.now += 1000

    executor = SimulatedExecutor(work, lasting, workers=1)
    time.now += 2
    executor.submit(4.0)  # 2-6
    time.now += 1
    assert executor.clock == 3
    executor.collect()
    assert executor.clock == 6
    executor.submit(4.0)  # 6-10
    time.now += 7
    executor.collect()
    assert executor.clock == 13, "the driver came late"


def test_busy_fraction_of_a_case_worked_out_by_hand(time: Time) -> None:
    """Until 6, when the last job is handed out: 0-4 and 5-6 of one worker, 0-6 of the other."""
    executor = SimulatedExecutor(lambda job: job, lasting, workers=2)
    executor.submit(4.0)
    executor.submit(6.0)
    executor.collect()
    time.now += 1
    executor.submit(5.0)
    executor.collect()
    executor.submit(3.0)
    assert executor.busy_fraction() == (4 + 1 + 6) / 12


def test_a_call_in_the_background_ends_after_the_time_it_took(time: Time) -> None:
    def propose() -> str:
        time.now += 3
        return "proposal"

    executor = SimulatedExecutor(lambda job: job, lasting, workers=2)
    executor.submit(2.0)
    later = executor.background(propose)
    assert executor.clock == 0, "it runs beside the driver"
    assert not later.done()
    assert executor.collect() == [(2.0, 2.0)]
    assert not later.done()
    executor.submit(2.0)  # 2-4
    assert executor.collect() == [], "only the call has ended, at 3"
    assert later.done()
    assert (executor.clock, later.result()) == (3, "proposal")
    assert executor.collect() == [(2.0, 2.0)]
    assert executor.clock == 4


def test_a_call_in_the_background_is_done_when_the_driver_takes_as_long(time: Time) -> None:
    executor = SimulatedExecutor(lambda job: job, lasting, workers=1)
    later = executor.background(lambda: setattr(time, "now", time.now + 3))
    time.now += 2.5
    assert not later.done()
    time.now += 0.5
    assert later.done()
