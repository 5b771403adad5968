import pytest
import torch
from torch import nn

from esnac import Searcher
from esnac.errors import EsnacError
from esnac.executors import SerialExecutor
from esnac.graphs.cost import candidate_costs
from esnac.search.feed import StepwiseFeed
from esnac.search.loop import search_loop
from esnac.search.settings import ObjectiveSettings, SearchSettings
from esnac.search.trial import Outcome
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


def searcher(seed=1, objective=None, **settings):
    settings = SearchSettings(**{"engine": "paper", "steps": 4, "batch": 3, "pool": 50, **settings})
    return Searcher(
        tiny(),
        (1, 8, 8),
        teacher_accuracy=0.9,
        settings=settings,
        surrogate=SMALL,
        objective=objective,
        seed=seed,
    )


def made_up(trial):
    """An accuracy without training: more channels are better, with diminishing returns."""
    return Outcome(accuracy=0.9 * (1 - 0.3 * trial.ratio**2), seconds=0.1)


def searched_through(engine):
    rows = []
    search_loop(StepwiseFeed(engine, rows.extend), SerialExecutor(made_up))
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
    assert len(engine.student(trials[0])) == len(engine.graph)
    assert [trial.number for trial in engine.ask(1)] == [3]


def test_students_are_built_with_the_teacher_s_weights():
    module = tiny()
    engine = Searcher(module, (1, 8, 8), settings=SearchSettings(pool=20), surrogate=SMALL)
    trial = engine.ask(1)[0]
    student = engine.build(trial)
    assert sum(p.numel() for p in student.parameters()) == trial.params
    kept = student.graph.layers[0].out_shape[0]
    first = student.state_dict()[f"{student.graph.layers[0].name}.weight"]
    assert torch.equal(first, module[0].weight[:kept])
    assert Searcher(engine.graph, surrogate=SMALL).build(trial).graph == student.graph


def test_a_failure_can_be_told():
    engine = searcher()
    trial = engine.ask(1)[0]
    assert engine.tell(trial, failure="no memory") is None
    assert engine.outcomes[0].reason == "no memory"
    with pytest.raises(EsnacError, match="takes one of"):
        engine.tell(trial, accuracy=0.5, failure="both")


def test_same_seed_same_proposals_and_never_twice():
    first, again, other = searcher(1), searcher(1), searcher(2)
    rows = [searched_through(engine) for engine in (first, again, other)]
    moves = [[trial.moves for trial in engine.trials] for engine in (first, again, other)]
    assert moves[0] == moves[1] != moves[2]
    assert len(set(moves[0])) == len(moves[0]) == 12
    assert [row["trial"] for row in rows[0] if row["state"] == "DONE"] == list(range(12))


def test_a_small_space_is_searched_to_its_end():
    space = SpaceSettings(moves=("remove",))
    settings = SearchSettings(engine="paper", steps=500, batch=8, pool=200)
    engine = Searcher(tiny(), (1, 8, 8), settings=settings, space=space, surrogate=SMALL)
    search_loop(StepwiseFeed(engine, lambda rows: None), SerialExecutor(made_up))
    removable = len(engine.space.removable)
    assert 0.9 * (2**removable - 1) <= len(engine.trials) <= 2**removable - 1


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


def test_the_best_by_accuracy_within_a_limit():
    """Nothing larger is ever proposed, so the most accurate one is the answer."""
    limit = ObjectiveSettings(kind="accuracy", max_params=300)
    engine = searcher(engine="random", objective=limit)
    for trial in engine.ask(12):
        engine.tell(trial, accuracy=0.6 + 0.01 * (7 * trial.number % 12))
    assert max(trial.params for trial in engine.trials) <= 300
    accuracy = {number: outcome.accuracy for number, outcome in engine.outcomes.items()}
    order = sorted(accuracy, key=lambda number: (-accuracy[number], number))
    assert [trial.number for trial in engine.best(5)] == order[:5]
    f = [engine.f(engine.trials[number]) for number in order]
    assert f != sorted(f, reverse=True), "by f the order would be another"


def test_the_best_lie_within_a_limit_that_is_measured_anew(make_searcher):
    """A machine that is slower by half than when the students were proposed."""
    factor = [1.0]

    def latency(space, candidates):
        return factor[0] * 1e-6 * candidate_costs(space, candidates)[0]

    limit = ObjectiveSettings(kind="accuracy", max_latency=0.3)
    engine = make_searcher("random", objective=limit, latency=latency)
    for trial in engine.ask(12):
        engine.tell(trial, accuracy=0.5 + trial.params / 1000)
    assert max(trial.params for trial in engine.best(12)) > 200
    factor[0] = 1.5
    assert 0 < max(trial.params for trial in engine.best(12)) <= 200


def test_the_best_of_a_pareto_search_lie_on_its_front():
    engine = searcher(engine="random", objective=ObjectiveSettings(kind="pareto"))
    assert engine.front() == ([], 0.0)
    assert engine.best(3) == []
    trials = engine.ask(4)
    # The one in the middle has less accuracy than the smallest; the last failed.
    size = sorted(trials[:3], key=lambda trial: trial.ratio)
    for trial, accuracy in zip(size, (0.9, 0.6, 0.7), strict=True):
        engine.tell(trial, accuracy=accuracy)
    engine.tell(trials[3], failure="no memory")
    front, volume = engine.front()
    assert {trial.number for trial in front} == {size[0].number, size[2].number}
    a, b = size[0].ratio, size[2].ratio
    assert volume == pytest.approx(1.0 * a + 0.7 / 0.9 * (b - a))
    assert {trial.number for trial in engine.best(2)} == {size[0].number, size[2].number}
    assert engine.best(3)[2] == size[1]


def test_engines_and_objectives_lead_to_other_students(make_searcher, searched):
    """All begin alike, spread over the sizes; then each goes its own way."""
    pareto = ObjectiveSettings(kind="pareto")
    searchers = [
        make_searcher("esnac"),
        make_searcher("esnac", objective=pareto),
        make_searcher("esnac", objective=ObjectiveSettings(kind="accuracy")),
        make_searcher("features"),
        make_searcher("evolution"),
        make_searcher("random"),
    ]
    for engine in searchers:
        searched(engine)
    first = [tuple(trial.moves for trial in engine.trials[:3]) for engine in searchers]
    assert first[0] == first[1] == first[2] == first[3]
    assert len({tuple(trial.moves for trial in engine.trials) for engine in searchers}) == 6


def test_a_pareto_search_finds_a_better_front_than_f(make_searcher, searched):
    """Twelve evaluations of three seeds; f is after small students alone."""
    volumes = {}
    for kind in ("f", "pareto"):
        found = []
        for seed in range(3):
            engine = make_searcher("esnac", seed, objective=ObjectiveSettings(kind=kind), pool=100)
            searched(engine)
            found.append(engine.front()[1])
        volumes[kind] = sum(found) / 3
    assert volumes["pareto"] > volumes["f"]


def test_a_training_that_was_stopped_counts_as_it_would_have_gone_on() -> None:
    """Whole trainings went from 0.2 to 0.4 in the geometric mean; after half of the epochs half of
    the distance in logs is left. None would have lost."""
    engine = searcher()
    a, b, c, d, e = engine.ask(5)
    engine.tell(e, Outcome(accuracy=0.9, stopped_after=1, curve=(0.9,)))
    engine.tell(a, Outcome(accuracy=0.3, stopped_after=1, curve=(0.3,)))
    engine.tell(b, Outcome(accuracy=0.8, curve=(0.4, 0.8)))
    engine.tell(c, Outcome(accuracy=0.2, curve=(0.1, 0.2)))
    engine.tell(d, Outcome(accuracy=0.7, stopped_after=1, curve=(0.7,)))
    assert engine.f(a) == pytest.approx(a.ratio * (2 - a.ratio) * 0.3 / engine.teacher_accuracy)
    history = engine._history(1)
    assert history.accuracy == pytest.approx([0.4 * 1.5**0.5, 0.8, 0.2, 0.4 * 3.5**0.5, 0.9])
    assert history.accuracy_at(0) == pytest.approx([0.3, 0.8, 0.2, 0.7, 0.9]), (
        "nothing was known then"
    )
    assert [trial.number for trial in engine.best(4)] == [1, 2], "the others left no student"
