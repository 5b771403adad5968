from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

from esnac.errors import EsnacError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Space
from esnac.search.engines.tpe import TpeProposer
from esnac.search.proposer import History, SpaceExhaustedError
from esnac.search.sampler import Source, sample
from esnac.search_spaces import SpaceSettings

pytest.importorskip("optuna")


def test_it_learns_from_the_observations(
    space: Space, make_history: Callable[..., History]
) -> None:
    """One layer should go and one group be wide; of random students half have each."""
    settings = SpaceSettings()
    students = sample(space, settings, 60, np.random.default_rng(0))
    layer, group = space.removable[2], int(np.flatnonzero(~space.frozen)[0])
    share = students.kept[:, group] / space.groups.sizes[group]
    value = students.removed[:, layer] + share
    engine = TpeProposer(Source(space, settings), seed=1)
    found = engine.propose(10, make_history(space, students, value)).candidates
    assert found.removed[:, layer].mean() >= 0.8
    assert (found.kept[:, group] / space.groups.sizes[group]).mean() > 0.7
    assert 0.3 < students.removed[:, layer].mean() < 0.7
    assert share.mean() < 0.6
    assert len(set(found.keys())) == 10


def test_it_draws_within_the_rates_of_the_space(
    space: Space, make_history: Callable[..., History]
) -> None:
    """No removal, at most half of the channels gone, at most a tenth of the skips."""
    settings = SpaceSettings(moves=("shrink", "skip"), shrink_limit=0.5, skip_rates=(0.1,))
    engine = TpeProposer(Source(space, settings), seed=1)
    nothing = make_history(space, space.candidates([]), np.zeros(0))
    found = engine.propose(20, nothing).candidates
    assert not found.removed.any()
    assert (found.kept >= np.floor(0.5 * space.groups.sizes)).all()
    assert (found.kept < space.groups.sizes).any()
    assert 0 < found.skips.sum(axis=1).max() <= 0.1 * len(space.skips)


def test_observations_outside_the_rates_are_taken_as_they_are(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Students narrower than, and with more skips than, the space draws (by mutation)."""
    students = sample(space, SpaceSettings(skip_rates=(0.5,)), 20, np.random.default_rng(0))
    narrow = SpaceSettings(shrink_limit=0.2, skip_rates=(0.01,))
    engine = TpeProposer(Source(space, narrow), seed=1)
    history = make_history(space, students, np.linspace(0, 1, 20))
    assert len(engine.propose(3, history).candidates) == 3


def test_all_of_a_small_space_and_then_the_end(
    short_graph: ArchGraph, make_history: Callable[..., History]
) -> None:
    space = Space(short_graph)
    engine = TpeProposer(Source(space, SpaceSettings(moves=("remove",))), seed=1)
    students = engine.propose(8, make_history(space, space.candidates([]), np.zeros(0))).candidates
    assert len(set(students.keys())) == 8
    every = np.array([[bool(n >> i & 1) for i in range(4)] for n in range(1, 16)])
    removed = np.zeros((15, len(short_graph)), dtype=bool)
    removed[:, space.removable] = every
    kept = np.repeat(space.identity().kept, 15, axis=0)
    skips = np.zeros((15, len(space.skips)), dtype=bool)
    whole = space.resolve(removed, kept, skips)
    with pytest.raises(SpaceExhaustedError):
        engine.propose(1, make_history(space, whole, np.zeros(15)))


def test_without_optuna_it_says_what_to_install(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EsnacError, match=r"needs Optuna: pip install 'esnac\[tpe\]'"):
        TpeProposer(Source(space, SpaceSettings()), seed=1)
