import pytest
from torch import nn

from esnac import Searcher
from esnac.errors import EsnacError
from esnac.executors import SerialExecutor
from esnac.search.loop import finished, proposed, restore, search_loop
from esnac.search.settings import SearchSettings
from esnac.search.trial import Outcome, Trial
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.settings import SurrogateSettings

SMALL = SurrogateSettings(hidden=4, layers=1, steps=3)


def tiny():
    def block(a, b):
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(1, 8),
        *block(8, 8),
        *block(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def searcher(seed=1, **settings):
    settings = SearchSettings(**{"steps": 4, "batch": 3, "pool": 50, **settings})
    return Searcher(
        tiny(), (1, 8, 8), teacher_accuracy=0.9, settings=settings, surrogate=SMALL, seed=seed
    )


def made_up(trial):
    """An accuracy without training: more channels are better, with diminishing returns."""
    return Outcome(accuracy=0.9 * (1 - 0.3 * trial.ratio**2), seconds=0.1)


def searched(engine):
    rows = []
    search_loop(engine, SerialExecutor(made_up), rows.extend)
    return rows


def test_ask_and_tell():
    engine = searcher()
    trials = engine.ask(3)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert engine.pending() == trials
    f = engine.tell(trials[0], accuracy=0.81)
    c = trials[0].ratio
    assert f == pytest.approx(c * (2 - c) * 0.9)
    assert engine.best() == [trials[0]]
    assert sum(p > 0 for p in [engine.student(trials[0]).layers[0].out_shape[0]]) == 1
    assert [trial.number for trial in engine.ask(1)] == [3]


def test_same_seed_same_proposals_and_never_twice():
    first, again, other = searcher(1), searcher(1), searcher(2)
    rows = [searched(engine) for engine in (first, again, other)]
    moves = [[trial.moves for trial in engine.trials] for engine in (first, again, other)]
    assert moves[0] == moves[1] != moves[2]
    assert len(set(moves[0])) == len(moves[0]) == 12
    assert [row["trial"] for row in rows[0] if row["state"] == "DONE"] == list(range(12))


@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_a_journal_cut_anywhere_resumes_to_the_same_search(cut):
    whole = searched(searcher())
    resumed = searcher()
    restore(resumed, whole[:cut])
    rows = whole[:cut] + searched(resumed)
    key = lambda row: (row["trial"], row["state"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(whole, key=key)


def test_failures_are_recorded_and_the_search_goes_on():
    def sometimes(trial):
        return Outcome(reason="out of luck") if trial.number % 2 else made_up(trial)

    engine, rows = searcher(), []
    search_loop(engine, SerialExecutor(sometimes), rows.extend)
    failed = [row for row in rows if row["state"] == "FAILED"]
    assert [row["trial"] for row in failed] == [1, 3, 5, 7, 9, 11]
    assert failed[0]["reason"] == "out of luck"
    assert all(trial.number % 2 == 0 for trial in engine.best(12))


def test_when_everything_fails_the_search_says_so():
    with pytest.raises(EsnacError, match="All 3 evaluations failed.*no memory"):
        search_loop(
            searcher(), SerialExecutor(lambda trial: Outcome(reason="no memory")), lambda rows: None
        )


def test_a_small_space_is_searched_to_its_end():
    space = SpaceSettings(moves=("remove",))
    settings = SearchSettings(steps=500, batch=8, pool=200)
    engine = Searcher(tiny(), (1, 8, 8), settings=settings, space=space, surrogate=SMALL)
    search_loop(engine, SerialExecutor(made_up), lambda rows: None)
    removable = len(engine.space.removable)
    assert 0.9 * (2**removable - 1) <= len(engine.trials) <= 2**removable - 1


def test_journal_rows_carry_number_and_state():
    engine = searcher()
    trial = engine.ask(1)[0]
    row = proposed(trial)
    assert (row["trial"], row["state"]) == (0, "PROPOSED")
    assert Trial.from_plain(row) == trial
    engine.tell(trial, Outcome(accuracy=0.5, seconds=2.0))
    row = finished(engine, trial)
    assert (row["state"], row["accuracy"], row["seconds"]) == ("DONE", 0.5, 2.0)


@pytest.mark.parametrize("accuracy", [1.5, -0.1, float("nan")])
def test_an_accuracy_is_a_fraction(accuracy):
    engine = searcher()
    with pytest.raises(EsnacError, match="fraction"):
        engine.tell(engine.ask(1)[0], accuracy=accuracy)


def test_a_result_is_taken_once_and_from_this_search_only():
    engine = searcher()
    trial = engine.ask(1)[0]
    engine.tell(trial, accuracy=0.5)
    with pytest.raises(EsnacError, match="already"):
        engine.tell(trial, accuracy=0.5)
    with pytest.raises(EsnacError, match="not one of this search"):
        searcher(2).tell(trial, accuracy=0.5)
