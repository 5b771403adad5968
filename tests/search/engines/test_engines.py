"""What every engine must keep, see `Proposer`; and that the default one is worth its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from esnac import Searcher
from esnac.errors import SettingsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Candidates, Space
from esnac.search.earlier import Earlier, space_of
from esnac.search.feed import restore
from esnac.search.sampler import sample
from esnac.search.settings import ObjectiveSettings
from esnac.search.trial import Outcome, Trial
from esnac.search_spaces import SpaceSettings

Make = Callable[..., Searcher]
Rows = list[dict[str, Any]]

ENGINES = ["esnac", "esnac, warm", "esnac, pareto", "features", "evolution", "random", "tpe"]


@pytest.fixture(scope="module")
def earlier(other_graph: ArchGraph) -> Earlier:
    """Eight students of another network, by made-up accuracies."""
    settings = SpaceSettings()
    space = space_of(other_graph, settings)
    drawn = sample(space, settings, 8, np.random.default_rng(0))
    moves = tuple(space.moves(drawn, row) for row in range(8))
    return Earlier(other_graph, settings, 0.9, moves, tuple(0.3 + 0.05 * row for row in range(8)))


@pytest.fixture(scope="module", params=ENGINES)
def start(request: pytest.FixtureRequest, make_searcher: Make, earlier: Earlier) -> Make:
    """start(seed): a searcher with one of the engines."""
    engine, _, mode = request.param.partition(", ")
    if engine == "tpe":
        pytest.importorskip("optuna")
    changed: dict[str, Any] = {"engine": engine}
    if mode == "warm":
        changed["earlier"] = earlier
    if mode == "pareto":
        changed["objective"] = ObjectiveSettings(kind="pareto", measures=("accuracy", "macs"))
    return lambda seed=1, **more: make_searcher(**{**changed, "seed": seed, **more})


@pytest.fixture(scope="module")
def whole(start: Make, searched: Callable[..., Rows]) -> Rows:
    """The journal of four steps of three trials, from another global random state every time."""
    torch.manual_seed(7)
    np.random.seed(7)
    return searched(start())


def by_trial(rows: Rows) -> Rows:
    """Trials by number, and fronts by step: evaluations may come back in any order."""
    return sorted(rows, key=lambda row: (row.get("trial", 1000), row.get("state"), row.get("step")))


def proposed(rows: Rows) -> list[Any]:
    return [Trial.from_plain(row).moves for row in rows if row.get("state") == "PROPOSED"]


def test_same_seed_same_search(
    start: Make, whole: Rows, searched: Callable[..., Rows], space: Space
) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    state = torch.get_rng_state()
    assert searched(start()) == whole
    assert torch.equal(torch.get_rng_state(), state)
    assert proposed(searched(start(seed=2))) != proposed(whole)


def test_no_architecture_twice_and_never_the_teacher(start: Make, whole: Rows) -> None:
    searcher = start()
    keys = searcher.space.candidates(proposed(whole)).keys()
    assert len(keys) == len(set(keys)) == 12
    assert searcher.space.identity().keys()[0] not in keys


#: In a step of three: one proposed; some told; all told; and the same in a later step whose model
#: goes on from the step before.
@pytest.mark.parametrize("cut", [1, 5, 6, 13, 16, 18])
def test_cut_anywhere_and_resumed_the_search_goes_on(
    start: Make, whole: Rows, searched: Callable[..., Rows], cut: int
) -> None:
    resumed = start()
    restore(resumed, whole[:cut])
    assert by_trial(searched(resumed, before=whole[:cut])) == by_trial(whole)


@pytest.mark.parametrize("step", [0, 2])
def test_asked_at_once_or_in_parts(
    start: Make, whole: Rows, made_up: Callable[[Trial], Outcome], step: int
) -> None:
    searchers = start(), start()
    for searcher in searchers:
        restore(searcher, [row for row in whole if row.get("trial", 99) < 3 * step])
    once, parts = searchers
    found = once.ask(3, step=step)
    first = parts.ask(2, step=step)
    parts.tell(first[0], made_up(first[0]))  # what comes in meanwhile changes nothing
    assert [*first, *parts.ask(1, step=step)] == found


def test_waiting_trials_are_not_proposed_again(start: Make) -> None:
    """Three steps asked for without any answer, and one more after the first answers."""
    searcher = start()
    for _ in range(3):
        searcher.ask(3)
    for trial in searcher.trials[:4]:
        searcher.tell(trial, accuracy=0.5 + 0.05 * trial.number)
    searcher.ask(3)
    assert len({trial.moves for trial in searcher.trials}) == 12


def test_failures_are_tolerated(
    start: Make, searched: Callable[..., Rows], made_up: Callable[[Trial], Outcome]
) -> None:
    """Every trial but the second of each step; the model begins with one observation."""

    def evaluate(trial: Trial) -> Outcome:
        return made_up(trial) if trial.number % 3 == 1 else Outcome(reason="no memory")

    rows = searched(start(), evaluate)
    assert len(proposed(rows)) == 12
    again = start()
    restore(again, [row for row in rows if row.get("trial", 99) < 6])
    assert again.ask(3) == [Trial.from_plain(row) for row in rows if row.get("trial", 0) in
                            (6, 7, 8) and row.get("state") == "PROPOSED"]  # fmt: skip


def test_a_first_step_that_fails_as_a_whole(start: Make) -> None:
    searcher = start()
    for trial in searcher.ask(3):
        searcher.tell(trial, failure="no memory")
    assert len(searcher.ask(3)) == 3
    assert len({trial.moves for trial in searcher.trials}) == 6


def test_a_small_space_is_searched_to_its_end(
    start: Make, searched: Callable[..., Rows], short_graph: ArchGraph
) -> None:
    """Four layers to remove: 15 students beside the teacher."""
    space = SpaceSettings(moves=("remove",))
    searcher = start(teacher=short_graph, space=space, steps=30, batch=2, pool=300, first_steps=1)
    assert len(searcher.space.removable) == 4
    rows = searched(searcher)
    assert len(set(proposed(rows))) == 15


def microseconds(space: Space, candidates: Candidates) -> np.ndarray:
    return 1e-6 * candidates.kept[:, ~space.frozen].sum(axis=1)


@pytest.mark.parametrize(
    "limit", [{"max_params": 200}, {"max_macs": 9000}, {"max_bytes": 900}, {"max_latency": 0.008}]
)
def test_every_proposal_keeps_the_limits(
    start: Make, searched: Callable[..., Rows], limit: dict[str, float]
) -> None:
    """Random students would mostly be larger: 24 channels, 1,323 parameters, 78,360 MACs."""
    mode = start().objective.settings
    settings = ObjectiveSettings(kind=mode.kind, measures=mode.measures, **limit)
    searcher = start(objective=settings, latency=microseconds, steps=3)
    moves = proposed(searched(searcher))
    assert len(moves) == 9
    candidates = searcher.space.candidates(moves)
    ((name, most),) = limit.items()
    found = searcher.objective.measured(candidates)[name.removeprefix("max_")]
    assert (found <= most).all()
    students = [searcher.build(trial) for trial in searcher.trials]
    if name == "max_params":
        assert max(sum(p.numel() for p in student.parameters()) for student in students) <= most
    drawn = sample(searcher.space, SpaceSettings(), 200, np.random.default_rng(0))
    assert searcher.objective.allowed(drawn).mean() < 0.7


def test_a_limit_out_of_reach_is_told_at_the_start(start: Make) -> None:
    with pytest.raises(SettingsError, match="smallest possible student has 16 parameters"):
        start(objective=ObjectiveSettings(kind="accuracy", max_params=10))


def landscape(searcher: Searcher, trial: Trial) -> Outcome:
    """Layers matter twice as much as widths, all of them alike."""
    space = searcher.space
    candidate = space.candidates([trial.moves])
    free = ~space.frozen
    share = candidate.kept[0, free] / space.groups.sizes[free]
    lost = 2 * candidate.removed[0, space.removable].mean() + ((1 - share) ** 2).mean()
    return Outcome(accuracy=0.9 * float(np.exp(-lost)), seconds=0.1)


def test_the_default_engine_beats_random_search(
    make_searcher: Make, searched: Callable[..., Rows], deep_graph: ArchGraph
) -> None:
    """Mean best f of three seeds after 24 evaluations: 0.74 and 0.49 were measured."""
    budget = {"steps": 6, "batch": 4, "pool": 200, "shortlist": 60}
    found: dict[str, list[float]] = {"esnac": [], "random": []}
    for engine, best in found.items():
        for seed in range(3):
            searcher = make_searcher(
                engine,
                seed,
                teacher=deep_graph,
                space=SpaceSettings(tied_by="dependency"),
                first_steps=25,
                next_steps=8,
                **budget,
            )
            searched(searcher, lambda trial, s=searcher: landscape(s, trial))
            best.append(searcher.f(searcher.best()[0]))
    assert np.mean(found["esnac"]) > np.mean(found["random"]) + 0.15, found
