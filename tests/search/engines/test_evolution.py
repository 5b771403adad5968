"""Regularised evolution: whose children are proposed, by how far they are from whom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from esnac.graphs.space import Candidates, Space
from esnac.search.engines.evolution import EvolutionProposer
from esnac.search.proposer import History
from esnac.search.sampler import Source, sample
from esnac.search.settings import SearchSettings
from esnac.search_spaces import SpaceSettings

#: Skips alone: an edit turns one over, so that five edits at most are between parent and child.
SKIPS = SpaceSettings(moves=("skip",), skip_rates=(0.5,))


@pytest.fixture(scope="module")
def students(space: Space) -> Candidates:
    return sample(space, SKIPS, 12, np.random.default_rng(0))


def engine(space: Space, population: int, tournament: int, seed: int = 3) -> EvolutionProposer:
    settings = SearchSettings(population=population, tournament=tournament)
    return EvolutionProposer(Source(space, SKIPS), settings, seed)


def parents_of(children: Candidates, students: Candidates) -> list[int]:
    """Which student each child is near; -1 for none."""
    distance = (children.skips[:, None] != students.skips[None]).sum(axis=2)
    nearest = distance.argmin(axis=1)
    return np.where(distance.min(axis=1) <= 5, nearest, -1).tolist()


def test_students_are_far_apart(students: Candidates) -> None:
    """Otherwise nearness would show nothing."""
    distance = (students.skips[:, None] != students.skips[None]).sum(axis=2)
    assert (distance + 99 * np.eye(12)).min() > 10


def test_the_first_population_is_random(
    space: Space, students: Candidates, make_history: Callable[..., History]
) -> None:
    """Trial 12 is the last of the first 13."""
    history = make_history(space, students, np.arange(12.0))
    found = engine(space, population=13, tournament=13).propose(3, history)
    assert parents_of(found.candidates, students)[0] == -1
    assert -1 not in parents_of(found.candidates, students)[1:]


def test_the_best_of_the_youngest_has_children(
    space: Space, students: Candidates, make_history: Callable[..., History]
) -> None:
    """The first two are the best of all and too old; of the five youngest it is number 9."""
    value = np.array([0.99, 0.98, 0.5, 0.4, 0.3, 0.2, 0.1, 0.3, 0.2, 0.6, 0.1, 0.5])
    history = make_history(space, students, value)
    found = engine(space, population=5, tournament=5).propose(8, history)
    assert parents_of(found.candidates, students) == [9] * 8
    assert len(set(found.candidates.keys())) == 8
    assert found.expected == (None,) * 8


def test_a_tournament_is_won_by_the_best_of_a_few(
    space: Space, students: Candidates, make_history: Callable[..., History]
) -> None:
    """Of two out of twelve, the best wins a sixth of the time and the worst never."""
    history = make_history(space, students, np.arange(12.0))
    found = engine(space, population=12, tournament=2).propose(300, history)
    winners = np.bincount(parents_of(found.candidates, students), minlength=12) / 300
    # Student k wins the pairs with the k below it: k / 66.
    np.testing.assert_allclose(winners, np.arange(12) / 66, atol=0.06)
    assert winners[0] == 0


def test_a_population_of_few_results_makes_do(
    space: Space, students: Candidates, make_history: Callable[..., History]
) -> None:
    """Two results, none at all."""
    two = students.select(np.arange(2))
    history = make_history(space, two, np.array([0.1, 0.2]), number=30)
    found = engine(space, population=5, tournament=5).propose(4, history)
    assert parents_of(found.candidates, two) == [1] * 4
    none = make_history(space, space.candidates([]), np.zeros(0), number=30)
    assert len(engine(space, population=5, tournament=5).propose(4, none).candidates) == 4
