from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Space
from esnac.runtime import derive_seed
from esnac.search.engines.random import RandomProposer, first_unseen
from esnac.search.proposer import History, SpaceExhaustedError
from esnac.search.sampler import Source, sample
from esnac.search_spaces import SpaceSettings

SETTINGS = SpaceSettings()


def nothing(space: Space) -> tuple:
    return space, space.candidates([]), np.zeros(0)


def test_proposals_are_what_the_sampler_draws(
    space: Space, make_history: Callable[..., History]
) -> None:
    """One draw per trial number, whatever is known of others."""
    engine = RandomProposer(Source(space, SETTINGS), seed=9)
    found = engine.propose(5, make_history(*nothing(space), number=3))
    expected = [
        sample(space, SETTINGS, 1, np.random.default_rng(derive_seed(9, "random", number))).keys()
        for number in range(3, 8)
    ]
    assert [[key] for key in found.candidates.keys()] == expected  # noqa: SIM118
    assert found.expected == (None,) * 5


def test_what_is_seen_is_drawn_again(space: Space, make_history: Callable[..., History]) -> None:
    engine = RandomProposer(Source(space, SETTINGS), seed=9)
    history = make_history(*nothing(space))
    (first,) = engine.propose(1, history).candidates.keys()
    history.seen.add(first)
    (second,) = engine.propose(1, history).candidates.keys()
    assert second != first


def test_all_of_a_small_space_and_then_the_end(
    short_graph: ArchGraph, make_history: Callable[..., History]
) -> None:
    """15 students, of which 20 are asked for."""
    space = Space(short_graph)
    source = Source(space, SpaceSettings(moves=("remove",)))
    engine = RandomProposer(source, seed=9)
    found = engine.propose(20, make_history(*nothing(space)))
    assert len(set(found.candidates.keys())) == len(found.candidates) == 15
    end = make_history(space, found.candidates, np.zeros(15))
    with pytest.raises(SpaceExhaustedError):
        engine.propose(1, end)
    assert first_unseen(source, np.random.default_rng(0), end.seen) is None
