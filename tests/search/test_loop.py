"""The search loop with made-up accuracies: its journal rows, resuming, failures, the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from esnac import Searcher
from esnac.errors import EsnacError
from esnac.executors import SerialExecutor
from esnac.search.feed import StepwiseFeed, finished, proposed, restore
from esnac.search.loop import search_loop
from esnac.search.settings import ObjectiveSettings, SearchSettings
from esnac.search.trial import Outcome, Trial
from esnac.surrogate.settings import SurrogateSettings

Rows = list[dict[str, Any]]


def searcher(
    seed: int = 1, objective: ObjectiveSettings | None = None, engine: str = "paper"
) -> Searcher:
    """Four steps of three trials."""
    layers = [
        layer
        for made in ((1, 8), (8, 8), (8, 8))
        for layer in (nn.Conv2d(*made, 3, padding=1), nn.BatchNorm2d(made[1]), nn.ReLU())
    ]
    return Searcher(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        (1, 8, 8),
        teacher_accuracy=0.9,
        settings=SearchSettings(engine=engine, steps=4, batch=3, pool=50),
        surrogate=SurrogateSettings(hidden=4, layers=1, steps=3),
        objective=objective,
        seed=seed,
    )


def made_up(trial: Trial) -> Outcome:
    """An accuracy without training: more channels are better, with diminishing returns."""
    return Outcome(accuracy=0.9 * (1 - 0.3 * trial.ratio**2), seconds=0.1)


def searched(engine: Searcher) -> Rows:
    rows: Rows = []
    search_loop(StepwiseFeed(engine, rows.extend), SerialExecutor(made_up))
    return rows


def by_trial(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: (row["trial"], row["state"]))


def test_every_trial_is_proposed_before_its_step_is_evaluated() -> None:
    rows = searched(searcher())
    step = ["PROPOSED"] * 3 + ["DONE"] * 3
    assert [row["state"] for row in rows] == step * 4
    numbers = [row["trial"] for row in rows]
    assert numbers == [n for start in (0, 3, 6, 9) for n in [start, start + 1, start + 2] * 2]
    assert [row["step"] for row in rows if row["state"] == "PROPOSED"] == [0] * 3 + [1] * 3 + [
        2
    ] * 3 + [3] * 3


def test_the_rows_of_a_step_are_written_together_and_results_at_once() -> None:
    calls: list[int] = []
    feed = StepwiseFeed(searcher(), lambda rows: calls.append(len(rows)))
    search_loop(feed, SerialExecutor(made_up))
    assert calls == [3, 1, 1, 1] * 4


def test_progress_sees_every_result() -> None:
    seen: list[int] = []
    feed = StepwiseFeed(
        searcher(), lambda rows: None, lambda engine: seen.append(len(engine.outcomes))
    )
    search_loop(feed, SerialExecutor(made_up))
    assert seen == list(range(13))


@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_a_journal_cut_anywhere_resumes_to_the_same_search(cut: int) -> None:
    whole = searched(searcher())
    resumed = searcher()
    restore(resumed, whole[:cut])
    rows = whole[:cut] + searched(resumed)
    assert by_trial(rows) == by_trial(whole)


def test_a_finished_search_has_nothing_left_to_do() -> None:
    whole, again = searched(searcher()), searcher()
    restore(again, whole)
    assert searched(again) == []


def test_other_events_of_a_journal_are_passed_over() -> None:
    engine = searcher()
    restore(engine, [{"event": "run"}, {"event": "finalists", "trials": [0]}, {"event": "end"}])
    assert engine.trials == []


def test_failures_are_recorded_and_the_search_goes_on() -> None:
    def sometimes(trial: Trial) -> Outcome:
        return Outcome(reason="out of luck") if trial.number % 2 else made_up(trial)

    engine, rows = searcher(), []
    search_loop(StepwiseFeed(engine, rows.extend), SerialExecutor(sometimes))
    failed = [row for row in rows if row["state"] == "FAILED"]
    assert [row["trial"] for row in failed] == [1, 3, 5, 7, 9, 11]
    assert failed[0]["reason"] == "out of luck"
    assert all(trial.number % 2 == 0 for trial in engine.best(12))
    again = searcher()
    restore(again, rows)
    assert again.outcomes == engine.outcomes


def test_when_everything_fails_the_search_says_so() -> None:
    rows: list[Sequence[dict[str, Any]]] = []
    feed = StepwiseFeed(searcher(), rows.append)
    failing = SerialExecutor(lambda trial: Outcome(reason="no memory"))
    with pytest.raises(EsnacError, match="All 3 evaluations failed.*no memory"):
        search_loop(feed, failing)
    assert len(rows) == 4, "one step and no more; what failed is on record"


def test_journal_rows_carry_number_and_state() -> None:
    engine = searcher()
    (trial,) = engine.ask(1)
    row = proposed(trial)
    assert (row["event"], row["trial"], row["state"]) == ("trial", 0, "PROPOSED")
    assert Trial.from_plain(row) == trial
    f = engine.tell(trial, Outcome(accuracy=0.5, seconds=2.0))
    row = finished(engine, trial)
    assert (row["state"], row["accuracy"], row["seconds"]) == ("DONE", 0.5, 2.0)
    assert (row["params"], row["macs"], row["ratio"]) == (trial.params, trial.macs, trial.ratio)
    assert row["f"] == f == pytest.approx(trial.ratio * (2 - trial.ratio) * 0.5 / 0.9)


PARETO = ObjectiveSettings(kind="pareto")


def area(points: list[tuple[float, float]]) -> float:
    """What points dominate above the origin: steps of a staircase, the widest first."""
    total = height = 0.0
    for x, y in sorted(points, reverse=True):
        total += x * max(y - height, 0)
        height = max(height, y)
    return total


def test_a_pareto_search_records_its_front_after_every_step() -> None:
    engine = searcher(objective=PARETO, engine="random")
    rows = searched(engine)
    assert [row.get("state", "front") for row in rows] == (
        ["PROPOSED"] * 3 + ["DONE"] * 3 + ["front"]
    ) * 4
    known: dict[int, tuple[float, float]] = {}
    volumes = []
    for row in rows:
        if row.get("state") == "DONE":
            known[row["trial"]] = (row["accuracy"] / 0.9, row["ratio"])
        elif row["event"] == "front":
            front = [
                number
                for number, (a, c) in known.items()
                if not any(
                    p[0] >= a and p[1] >= c and p != (a, c) for p in known.values()
                )
            ]  # fmt: skip
            assert row["step"] == len(volumes)
            assert row["trials"] == front
            assert row["hypervolume"] == pytest.approx(area(list(known.values())))
            volumes.append(row["hypervolume"])
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]
    trials, volume = engine.front()
    assert [trial.number for trial in trials] == rows[-1]["trials"]
    assert volume == volumes[-1]


@pytest.mark.parametrize("cut", range(29))
def test_a_pareto_search_cut_anywhere_records_each_front_once(cut: int) -> None:
    whole = searched(searcher(objective=PARETO, engine="random"))
    resumed = searcher(objective=PARETO, engine="random")
    restore(resumed, whole[:cut])
    rows = whole[:cut] + searched(resumed)

    def order(row: dict[str, Any]) -> tuple[int, str, int]:
        return row.get("trial", -1), row.get("state", ""), row.get("step", 0)

    assert sorted(rows, key=order) == sorted(whole, key=order)


def test_other_searches_have_no_front() -> None:
    rows = searched(searcher(objective=ObjectiveSettings(kind="accuracy"), engine="random"))
    assert {row["event"] for row in rows} == {"trial"}
