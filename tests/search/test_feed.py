"""Who gets which trial when, and what is recorded in which order, however fast it is evaluated."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esnac import Searcher
from esnac.errors import EsnacError
from esnac.executors import SerialExecutor, SimulatedExecutor
from esnac.graphs.arch_graph import ArchGraph
from esnac.search.feed import Feed, StepwiseFeed, StreamingFeed, restore
from esnac.search.loop import search_loop
from esnac.search.settings import ObjectiveSettings
from esnac.search.trial import Outcome, Trial
from esnac.search_spaces import SpaceSettings

Rows = list[dict[str, Any]]
Evaluate = Callable[[Trial], Outcome]


class Later:
    """A call in the background that ends when the test says so, or at once."""

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self.calls: list[Later] = []

    def __call__(self, call: Callable[[], list[Trial]]) -> Later:
        started = Later()
        started.call, started.over = call, self.at_once
        self.calls.append(started)
        return started

    def done(self) -> bool:
        return self.over

    def result(self) -> list[Trial]:
        return self.call()


def drive(feed: Feed, evaluate: Evaluate, rng: random.Random, workers: int = 3) -> None:
    """Some workers that end in any order; a free one does not always ask at once."""
    running: list[Trial] = []
    while True:
        idle = len(running) == workers or (running and rng.random() < 0.5)
        trial = None if idle else feed.next()
        if trial is not None:
            running.append(trial)
        elif running:
            ended = running.pop(rng.randrange(len(running)))
            feed.take(ended, evaluate(ended))
        elif feed.finished:
            return


def streaming(searcher: Searcher, rows: Rows, workers: int = 3) -> StreamingFeed:
    return StreamingFeed(searcher, rows.extend, workers=workers, background=Later())


def by_trial(rows: Iterable[dict[str, Any]]) -> Rows:
    return sorted(rows, key=lambda row: (row["trial"], row["state"]))


def states(rows: Rows) -> list[tuple[int, str]]:
    return [(row["trial"], row["state"]) for row in by_trial(rows)]


def once(count: int) -> list[tuple[int, str]]:
    return [(number, state) for number in range(count) for state in ("DONE", "PROPOSED")]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_stepwise_journal_does_not_depend_on_the_order_of_results(
    make_searcher: Callable[..., Searcher],
    searched: Callable[..., Rows],
    made_up: Evaluate,
    rng: random.Random,
) -> None:
    rows: Rows = []
    drive(StepwiseFeed(make_searcher("evolution"), rows.extend), made_up, rng)
    assert rows == searched(make_searcher("evolution"))


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 24))
def test_a_stepwise_journal_cut_anywhere_resumes_to_the_same(
    make_searcher: Callable[..., Searcher],
    searched: Callable[..., Rows],
    made_up: Evaluate,
    rng: random.Random,
    cut: int,
) -> None:
    whole, resumed = searched(make_searcher("evolution")), make_searcher("evolution")
    rows = whole[:cut]
    restore(resumed, rows)
    drive(StepwiseFeed(resumed, rows.extend), made_up, rng)
    assert by_trial(rows) == by_trial(whole)


def test_a_stepwise_result_waits_for_those_before_it(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    rows: Rows = []
    searcher = make_searcher("random")
    feed = StepwiseFeed(searcher, rows.extend)
    first, second, third = (feed.next() for _ in range(3))
    assert feed.next() is None, "the step is not over"
    for trial, recorded in ((third, 3), (second, 3), (first, 6)):
        feed.take(trial, made_up(trial))
        assert len(rows) == recorded
    assert [row["trial"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert feed.next().step == 1


@pytest.mark.parametrize("workers", [1, 2, 5, 20])
def test_every_free_worker_gets_a_trial_and_no_more_than_asked_for(
    workers: int, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """Twelve trials of which `workers` are always running."""
    rows: Rows = []
    feed = streaming(make_searcher("random"), rows, workers)
    running = [feed.next() for _ in range(min(workers, 12))]
    assert None not in running
    for _ in range(12 - len(running)):
        ended = running.pop(0)
        feed.take(ended, made_up(ended))
        running.append(feed.next())
        assert running[-1] is not None
    assert feed.next() is None
    for ended in running:
        assert not feed.finished
        feed.take(ended, made_up(ended))
    assert feed.next() is None
    assert feed.finished
    assert states(rows) == once(12)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_free_worker_does_not_wait_for_proposals_being_made(
    batch: int, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """They take as long as an evaluation on either of two workers."""
    background = Later()
    searcher = make_searcher("random", batch=batch, steps=24 // batch)
    feed = StreamingFeed(searcher, lambda rows: None, workers=2, background=background)
    running = [feed.next(), feed.next()]
    background.at_once = False
    for _ in range(22):
        ended = running.pop(0)
        feed.take(ended, made_up(ended))
        running.append(feed.next())
        assert running[-1] is not None
        for call in background.calls:
            call.over = True


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_pending_students_are_not_proposed_again(
    make_searcher: Callable[..., Searcher],
    short_graph: ArchGraph,
    made_up: Evaluate,
    rng: random.Random,
) -> None:
    """Twelve of the fifteen that a space of four removable layers has."""
    space = SpaceSettings(moves=("remove",))
    searcher = make_searcher("evolution", teacher=short_graph, space=space)
    drive(streaming(searcher, [], workers=5), made_up, rng, workers=5)
    assert len({trial.moves for trial in searcher.trials}) == 12
    assert len(searcher.outcomes) == 12


def test_results_that_come_while_proposals_are_made_are_recorded_after_them(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    rows: Rows = []
    background = Later()
    searcher = make_searcher("random")
    feed = StreamingFeed(searcher, rows.extend, workers=3, background=background)
    running = [feed.next() for _ in range(3)]
    background.at_once = False
    running.append(feed.next())  # starts the next call
    assert (len(running), len(rows), len(background.calls)) == (4, 4, 2)
    for number in (1, 2, 0):
        feed.take(running[number], made_up(running[number]))
    assert feed.next() is None
    assert (len(rows), searcher.outcomes) == (4, {})
    background.calls[1].over = True
    assert feed.next().number == 4
    assert [(row["trial"], row["state"]) for row in rows[4:]] == [
        (4, "PROPOSED"), (1, "DONE"), (2, "DONE"), (0, "DONE"),
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["random", "evolution", "features"])
def test_the_journal_says_what_each_proposal_knew(
    engine: str, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """A searcher restored from the rows before a proposal proposes the same."""
    rows: Rows = []
    searcher = make_searcher(engine)
    drive(streaming(searcher, rows), made_up, random.Random(4))
    assert states(rows) == once(12)
    first = {row["step"]: at for at, row in reversed([*enumerate(rows)]) if "step" in row}
    assert len(first) > 3
    for step, at in [*first.items()][::3]:
        wanted = [trial for trial in searcher.trials if trial.step == step]
        again = make_searcher(engine)
        restore(again, rows[:at])
        assert again.ask(len(wanted)) == wanted
    since, steps = {}, 0
    for row in rows:
        if row["state"] == "PROPOSED":
            steps = row["step"] + 1
        else:
            since[row["trial"]] = steps
    again = make_searcher(engine)
    restore(again, rows)
    assert searcher._since == again._since == since


@pytest.mark.parametrize("cut", range(0, 25, 4))
def test_a_streaming_journal_cut_anywhere_resumes(
    cut: int, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    whole: Rows = []
    drive(streaming(make_searcher("evolution"), whole), made_up, random.Random(1))
    continued = []
    for _ in range(2):
        rows, resumed = whole[:cut], make_searcher("evolution")
        restore(resumed, rows)
        drive(streaming(resumed, rows), made_up, random.Random(2))
        assert states(rows) == once(12)
        continued.append(rows)
    assert continued[0] == continued[1]


@pytest.mark.parametrize("workers", [2, 16])
@pytest.mark.parametrize("cut", [5, 12, 20])
def test_a_search_resumed_the_other_way_has_as_many_trials(
    cut: int, workers: int, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    def stepwise(searcher: Searcher, rows: Rows) -> Feed:
        return StepwiseFeed(searcher, rows.extend)

    def parallel(searcher: Searcher, rows: Rows) -> Feed:
        return streaming(searcher, rows, workers)

    for first, second in ((stepwise, parallel), (parallel, stepwise)):
        whole: Rows = []
        drive(first(make_searcher("random"), whole), made_up, random.Random(1), workers)
        rows, resumed = whole[:cut], make_searcher("random")
        restore(resumed, rows)
        drive(second(resumed, rows), made_up, random.Random(2), workers)
        assert states(rows) == once(12)


def test_with_trainings_stopped_early_the_same_continuation(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """What a step made of them it makes of them again."""

    def stopping(trial: Trial) -> Outcome:
        accuracy = made_up(trial).accuracy or 0.0
        if trial.number % 2:
            return Outcome(accuracy=accuracy / 2, stopped_after=1, curve=(accuracy / 2,))
        return Outcome(accuracy=accuracy, curve=(accuracy / (2 + trial.number / 9), accuracy))

    whole: Rows = []
    search_loop(StepwiseFeed(make_searcher("esnac"), whole.extend), SerialExecutor(stopping))
    for cut in (6, 13, 18, 21):
        rows, resumed = whole[:cut], make_searcher("esnac")
        restore(resumed, rows)
        search_loop(StepwiseFeed(resumed, rows.extend), SerialExecutor(stopping))
        assert by_trial(rows) == by_trial(whole)


@pytest.mark.parametrize("seed", range(3))
def test_a_streaming_pareto_search_records_each_front_once(
    seed: int, make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    rows: Rows = []
    searcher = make_searcher("random", objective=ObjectiveSettings(kind="pareto"))
    drive(streaming(searcher, rows), made_up, random.Random(seed))
    fronts = [row for row in rows if row["event"] == "front"]
    steps = [row["step"] for row in fronts]
    assert steps == sorted(set(steps))
    assert rows[-1] == fronts[-1]
    trials, volume = searcher.front()
    assert fronts[-1]["trials"] == [trial.number for trial in trials]
    assert fronts[-1]["hypervolume"] == volume


def test_when_everything_fails_a_streaming_search_says_so(
    make_searcher: Callable[..., Searcher],
) -> None:
    rows: Rows = []
    feed = streaming(make_searcher("random"), rows)
    with pytest.raises(EsnacError, match="All 3 evaluations failed.*no memory"):
        drive(feed, lambda trial: Outcome(reason="no memory"), random.Random(0))
    assert [row["state"] for row in rows].count("FAILED") == 3, "what failed is on record"


def test_fewer_trials_than_workers_that_all_fail_are_an_error_too(
    make_searcher: Callable[..., Searcher],
) -> None:
    feed = streaming(make_searcher("random"), [], workers=20)
    with pytest.raises(EsnacError, match="All 12 evaluations failed"):
        drive(feed, lambda trial: Outcome(reason="no memory"), random.Random(0), workers=20)


def test_some_failures_do_not_end_a_streaming_search(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    def sometimes(trial: Trial) -> Outcome:
        return made_up(trial) if trial.number % 3 == 0 else Outcome(reason="out of luck")

    rows: Rows = []
    drive(streaming(make_searcher("evolution"), rows), sometimes, random.Random(0))
    failed = sorted(row["trial"] for row in rows if row["state"] == "FAILED")
    assert failed == [1, 2, 4, 5, 7, 8, 10, 11]


@pytest.mark.parametrize("make_feed", [streaming, lambda *a: StepwiseFeed(a[0], a[1].extend)])
def test_an_exhausted_space_ends_the_search(
    make_feed: Callable[[Searcher, Rows], Feed],
    make_searcher: Callable[..., Searcher],
    short_graph: ArchGraph,
    made_up: Evaluate,
) -> None:
    """Four layers can be removed, each or not, and at least one: fifteen students."""
    space = SpaceSettings(moves=("remove",))
    searcher = make_searcher("random", teacher=short_graph, space=space, steps=30)
    rows: Rows = []
    with pytest.warns(UserWarning, match="ends after 15 students"):
        drive(make_feed(searcher, rows), made_up, random.Random(0))
    assert states(rows) == once(15)


def test_a_fault_while_proposing_comes_out(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    searcher = make_searcher("random")
    searcher.ask = lambda n: 1 // 0
    feed = StreamingFeed(searcher, lambda rows: None, workers=2)
    with pytest.raises(ZeroDivisionError):
        drive(feed, made_up, random.Random(0))


def test_close_waits_for_the_thread(make_searcher: Callable[..., Searcher]) -> None:
    before = set(threading.enumerate())
    searcher, started, asked = make_searcher("random"), threading.Event(), []

    def slowly(count: int) -> list[Trial]:
        started.set()
        time.sleep(0.3)
        asked.append(count)
        return []

    searcher.ask = slowly
    feed = StreamingFeed(searcher, lambda rows: None, workers=2)
    assert feed.next() is None
    assert started.wait(10)
    feed.close()
    assert asked
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_no_thread_is_left_of_a_feed_that_nobody_closes(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """As of Tune's algorithms, which are not told that a search was broken off."""
    before = set(threading.enumerate())
    feed = StreamingFeed(make_searcher("random"), lambda rows: None, workers=2)
    while feed.next() is None:
        pass
    feed.settle()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_many_simulated_workers_are_kept_busy(
    make_searcher: Callable[..., Searcher], made_up: Evaluate
) -> None:
    """Evaluations of 20 to 40 seconds: 16 workers need four or five rounds for 64 trials."""
    searcher = make_searcher("random", steps=8, batch=8)
    executor = SimulatedExecutor(made_up, lambda trial: 20 + trial.number * 7 % 20, workers=16)
    rows: Rows = []
    feed = StreamingFeed(searcher, rows.extend, workers=16, background=executor.background)
    search_loop(feed, executor)
    assert states(rows) == once(64)
    assert 64 * 20 / 16 < executor.clock < 5 * 40
    assert executor.busy_fraction() > 0.95
