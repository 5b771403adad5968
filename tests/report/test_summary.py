"""Published figures recomputed, and journals at every point of a run's life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esnac.objective import reward
from esnac.report.summary import EpochFigures, Finalist, summarise

JSON_KEYS = ["run", "network", "dataset", "seed", "engine", "objective", "teacher"]
JSON_KEYS += ["evaluations", "best_f", "epochs", "surrogate", "finalists"]
SURROGATE_KEYS = ["trials", "rank_correlation", "coverage", "hit_rate"]
FINALIST_KEYS = ["index", "trial", "params", "macs", "ratio", "times", "accuracy_search"]
FINALIST_KEYS += ["accuracy", "f_search", "f", "path", "stages"]

HEADER: list[dict[str, Any]] = [
    {"event": "run", "network": "resnet34", "dataset": "cifar100", "seed": 127, "engine": "esnac"},
    {
        "event": "teacher",
        "accuracy": 0.7871,
        "validation_accuracy": 0.78,
        "params": 21_328_292,
        "macs": 1_160_000_000,
    },
]


def proposed(trial: int, params: int = 2_000_000) -> dict[str, Any]:
    figures = {"params": params, "macs": 10 * params, "moves": {"removed": [3]}}
    return {"event": "trial", "trial": trial, "state": "PROPOSED", "step": 1, **figures}


def done(trial: int, f: float) -> dict[str, Any]:
    return {"event": "trial", "trial": trial, "state": "DONE", "accuracy": 0.6, "f": f}


def failed(trial: int) -> dict[str, Any]:
    return {"event": "trial", "trial": trial, "state": "FAILED", "reason": "loss is not finite"}


def stage(index: int, trial: int, validation: float, accuracy: float, f: float) -> dict[str, Any]:
    return {
        "event": "stage",
        "time": "2026-01-01T00:00:00.000000+00:00",
        "index": index,
        "trial": trial,
        "stage": "train",
        "accuracy": accuracy,
        "validation_accuracy": validation,
        "f": f,
        "params": 2_000_000,
        "macs": 20_000_000,
        "ratio": 1 - 2_000_000 / 21_328_292,
        "path": f"finalists/{index}",
    }


SEARCHED = [*HEADER, proposed(0), proposed(1), proposed(2), done(1, 0.8), failed(0), done(2, 0.9)]
FINALISTS = [*SEARCHED, {"event": "finalists", "trials": [2, 1]}]


def one_finalist(params: int, teacher_params: int, accuracy: float, teacher: float) -> Finalist:
    """The summary of a run with these figures; its f is the reward that the search would note."""
    events = [
        {"event": "run"},
        {"event": "teacher", "accuracy": teacher, "params": teacher_params},
        proposed(0, params),
        done(0, 0.5),
        {"event": "finalists", "trials": [0]},
    ]
    f = reward(1 - params / teacher_params, accuracy, teacher)
    figures = {"stage": "train", "params": params, "accuracy": accuracy, "f": f}
    (finalist,) = summarise(
        [*events, {"event": "stage", "index": 0, "trial": 0, **figures}], "a"
    ).finalists
    return finalist


@pytest.mark.parametrize(
    ("ratio", "times", "accuracy", "teacher", "f"),
    [  # Cao et al., ICLR 2019, CIFAR-100: VGG-19, ResNet-18, ResNet-34, ShuffleNet
        (0.8470, 6.54, 0.7164, 0.7371, 0.9492),
        (0.8876, 8.90, 0.7191, 0.7868, 0.9024),
        (0.8664, 7.48, 0.7547, 0.7871, 0.9417),
        (0.8298, 5.88, 0.6817, 0.7114, 0.9305),
    ],
)
def test_published_rows(
    ratio: float, times: float, accuracy: float, teacher: float, f: float
) -> None:
    size = 10**9
    finalist = one_finalist(round(size * (1 - ratio)), size, accuracy, teacher)
    assert finalist.ratio == pytest.approx(ratio, abs=1e-8)
    assert finalist.times == pytest.approx(times, abs=0.006)
    assert finalist.f == pytest.approx(f, abs=1e-4)


@pytest.mark.parametrize(
    ("params", "teacher", "ratio"),
    [
        (3_070_000, 20_086_692, 0.8470),
        (1_260_000, 11_220_132, 0.8876),
        (2_850_000, 21_328_292, 0.8664),
    ],
)
def test_published_parameters_give_the_ratio(params: int, teacher: int, ratio: float) -> None:
    assert one_finalist(params, teacher, 0.7, 0.8).ratio == pytest.approx(ratio, abs=5e-4)


def test_nothing_is_compared_with_an_unknown_teacher() -> None:
    (trial,) = summarise([{"event": "run"}, proposed(0)], "a").trials
    assert (trial.params, trial.ratio, trial.times) == (2_000_000, None, None)


def test_the_keys_are_the_contract() -> None:
    plain = summarise([*FINALISTS, stage(0, 2, 0.7, 0.69, 0.95)], "a").to_plain()
    assert list(plain) == JSON_KEYS
    assert list(plain["teacher"]) == ["accuracy", "params", "macs"]
    assert list(plain["surrogate"]) == SURROGATE_KEYS
    assert [list(finalist) for finalist in plain["finalists"]] == [FINALIST_KEYS] * 2


def test_a_finished_run() -> None:
    stages = [stage(0, 2, 0.70, 0.69, 0.95), stage(1, 1, 0.71, 0.68, 0.94)]
    summary = summarise([*FINALISTS, *stages, {"event": "end"}], "a", Path("/runs/a"))
    assert summary.ended
    assert (summary.run, summary.network, summary.dataset) == ("a", "resnet34", "cifar100")
    assert (summary.seed, summary.engine) == (127, "esnac")
    assert (summary.teacher.accuracy, summary.teacher.params) == (0.7871, 21_328_292)
    assert (summary.evaluations, summary.best_f) == (2, 0.9)
    first = summary.finalists[0]
    assert (first.index, first.trial, first.accuracy_search, first.f_search) == (0, 2, 0.6, 0.9)
    assert (first.accuracy, first.f, first.path) == (0.69, 0.95, "/runs/a/finalists/0")
    assert first.times == pytest.approx(10.664146)
    assert first.ratio == pytest.approx(1 - 1 / 10.664146)
    assert "event" not in first.stages[0]
    assert "time" not in first.stages[0]
    assert first.stages[0]["path"] == "/runs/a/finalists/0"


def test_the_validation_split_picks_the_best_finalist() -> None:
    stages = [stage(0, 2, 0.70, 0.69, 0.95), stage(1, 1, 0.71, 0.68, 0.94)]
    best = summarise([*FINALISTS, *stages], "a").best_finalist()
    assert best is not None
    assert best.index == 1
    assert best.f == 0.94
    for one in stages:
        del one["validation_accuracy"]
    best = summarise([*FINALISTS, *stages], "a").best_finalist()
    assert best is not None
    assert best.index == 0, "else f of the search: 0.9 against 0.8"


def test_later_stages_follow_in_order_and_the_last_counts() -> None:
    later = {**stage(0, 2, 0.70, 0.60, 0.97), "stage": "prune", "params": 1_000_000, "ratio": 0.95}
    summary = summarise([*FINALISTS, stage(0, 2, 0.70, 0.69, 0.95), later], "a")
    first, second = summary.finalists
    assert [one["stage"] for one in first.stages] == ["train", "prune"]
    assert (first.params, first.accuracy, first.f, first.ratio) == (1_000_000, 0.60, 0.97, 0.95)
    assert first.times == pytest.approx(21.328292)
    assert (second.stages, second.accuracy, second.f, second.path) == ([], None, None, None)
    assert second.params == 2_000_000
    assert second.f_search == 0.8


def test_stages_of_an_earlier_choice_do_not_count() -> None:
    events = [*FINALISTS, stage(0, 2, 0.7, 0.69, 0.95), {"event": "finalists", "trials": [1]}]
    summary = summarise(events, "a")
    assert [(row.trial, row.stages) for row in summary.finalists] == [(1, [])]


def failure(index: int, trial: int, reason: str) -> dict[str, Any]:
    named = {"event": "failure", "index": index, "trial": trial}
    return {**named, "stage": "train", "reason": reason}


def test_failures_stand_until_the_stage_succeeds() -> None:
    first = [*FINALISTS, failure(0, 2, "no memory"), stage(1, 1, 0.7, 0.69, 0.95)]
    (lost,) = summarise(first, "a").failures
    assert (lost.index, lost.trial, lost.stage, lost.reason) == (0, 2, "train", "no memory")
    (lost,) = summarise([*first, failure(0, 2, "not finite")], "a").failures
    assert lost.reason == "not finite", "the last word of several attempts"
    assert summarise([*first, stage(0, 2, 0.7, 0.69, 0.95)], "a").failures == []
    later = [*first, {"event": "finalists", "trials": [1]}]
    assert summarise(later, "a").failures == [], "of an earlier choice"
    plain = summarise(first, "a").to_plain()
    assert list(plain) == JSON_KEYS
    assert [list(finalist) for finalist in plain["finalists"]] == [FINALIST_KEYS] * 2


def test_links_of_one_name_fail_apart() -> None:
    """Links 1 and 3 of the chain have the same name; 1 succeeded."""
    place = {"index": 0, "trial": None, "stage": "train-finetune"}
    first = stage(0, 1, 0.7, 0.7, 0.5) | place | {"link": 1}
    lost = {"event": "failure", "link": 3, "reason": "not finite", **place}
    events = [*HEADER, {"event": "finalists", "trials": [None]}, first, lost]
    summary = summarise(events, "a")
    assert [failure.reason for failure in summary.failures] == ["not finite"]
    assert (summary.finalists[0].trial, len(summary.finalists[0].stages)) == (None, 1)
    other = {**lost, "link": 1}
    again = summarise([*events[:3], other, first], "a")
    assert not again.failures


def test_a_search_under_way() -> None:
    summary = summarise([*SEARCHED, proposed(3)], "a")
    assert summary.finalists == []
    assert summary.best_finalist() is None
    assert not summary.ended
    assert [trial.trial for trial in summary.best_trials()] == [2, 1]
    assert [summary.count(state) for state in ("DONE", "FAILED", "PROPOSED")] == [2, 1, 1]
    lost = summary.trials[0]
    assert (lost.reason, lost.f, lost.params) == ("loss is not finite", None, 2_000_000)
    assert summary.trials[1].step == 1
    assert summary.trials[1].times == pytest.approx(10.664146)


def test_expectations_of_proposals_meet_what_was_measured() -> None:
    expected = [{"accuracy": a, "low": a - 0.05, "high": a + 0.05} for a in (0.4, 0.5, 0.6, 0.7)]
    later = [{**proposed(3 + i), "step": 2, "expected": e} for i, e in enumerate(expected)]
    measured = [(3, 0.41, 0.85), (5, 0.70, 0.95), (4, 0.54, 0.7)]  # the third is too good
    results = [{**done(trial, f), "accuracy": a} for trial, a, f in measured]
    plain = summarise([*SEARCHED, *later, *results], "a").to_plain()
    assert plain["surrogate"] == {
        "trials": 4,
        "rank_correlation": pytest.approx(1),
        "coverage": pytest.approx(2 / 3),
        "hit_rate": 1.0,
    }


@pytest.mark.parametrize("length", range(len(FINALISTS) + 1))
def test_every_beginning_of_a_journal_has_a_summary(length: int) -> None:
    plain = summarise(FINALISTS[:length], "a").to_plain()
    assert list(plain) == JSON_KEYS
    assert list(plain["teacher"]) == ["accuracy", "params", "macs"]


def test_epochs_spent_and_those_that_early_stopping_saved() -> None:
    rows = [{"event": "run", "epochs": 9}, *map(proposed, range(3))]
    rows += [done(0, 0.5), {**done(1, 0.7), "stopped_after": 1}]
    rows += [{**done(2, 0.6), "stopped_after": 3}]
    summary = summarise(rows, "a")
    assert summary.epochs == EpochFigures(spent=13, planned=27)
    assert [trial.trial for trial in summary.best_trials()] == [0], "the others left no student"
    assert summarise(rows[1:], "a").epochs is None, "an older journal does not tell"


def test_the_best_trial_is_best_by_what_the_search_was_after() -> None:
    small, accurate = {**done(0, 0.9), "accuracy": 0.5}, {**done(1, 0.4), "accuracy": 0.8}
    rows = [proposed(0), proposed(1), small, accurate]
    front = {"event": "front", "step": 0, "trials": [1], "hypervolume": 0.1}

    def best(objective: str, *more: dict[str, Any]) -> list[int]:
        header = {"event": "run", "objective": objective}
        return [t.trial for t in summarise([header, *rows, *more], "a").best_trials()]

    assert best("f") == [0, 1]
    assert best("accuracy") == [1, 0]
    assert best("pareto", front) == [1, 0]
