"""The published proposal against a choice by hand: every step is written out again here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.encode import encode
from esnac.graphs.space import Candidates, Space
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed, torch_generator
from esnac.search.engines.paper import PaperProposer
from esnac.search.proposer import History, SpaceExhaustedError
from esnac.search.sampler import Source, sample
from esnac.search.settings import SearchSettings
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.fit import fit
from esnac.surrogate.settings import SurrogateSettings

#: Students and their f.
Observed = tuple[Candidates, np.ndarray]

SEED = 5
SETTINGS = SearchSettings(pool=60)
SURROGATE = SurrogateSettings(hidden=8, layers=1, steps=20)


@pytest.fixture(scope="module")
def space() -> Space:
    layers = [
        layer
        for made in ((1, 8), (8, 8), (8, 8), (8, 8))
        for layer in (nn.Conv2d(*made, 3, padding=1), nn.BatchNorm2d(made[1]), nn.ReLU())
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return Space(trace(network, (1, 8, 8)))


@pytest.fixture(scope="module")
def observed(space: Space) -> Observed:
    rng = np.random.default_rng(0)
    return sample(space, SpaceSettings(), 12, rng), rng.uniform(0.2, 0.9, 12)


@pytest.fixture
def proposer(space: Space) -> PaperProposer:
    return PaperProposer(Source(space, SpaceSettings()), SETTINGS, SURROGATE, SEED)


def encoded(space: Space, candidates: Candidates) -> torch.Tensor:
    """Graph by graph, without the encoder of many candidates."""
    rows = range(len(candidates))
    return stacked([space.apply(space.moves(candidates, row)) for row in rows])


def stacked(graphs: list[ArchGraph]) -> torch.Tensor:
    return torch.from_numpy(np.stack([encode(graph) for graph in graphs]))


def improvement(mean: float, sigma: float, best_f: float) -> float:
    """E[max(f - best_f, 0)] for f ~ N(mean, sigma^2)."""
    u = (mean - best_f) / sigma
    density = math.exp(-u * u / 2) / math.sqrt(2 * math.pi)
    return sigma * (density + u * 0.5 * math.erfc(-u / math.sqrt(2)))


def by_hand(
    space: Space, observed: Observed, number: int, seen: set[bytes]
) -> tuple[list[bytes], list[float]]:
    """Keys of the unseen candidates of the trial's pool, and their expected improvements."""
    rng = np.random.default_rng(derive_seed(SEED, "proposal", number))
    candidates, f = observed
    half = np.flatnonzero(rng.random(len(f)) < 0.5)
    students = [space.apply(space.moves(candidates, int(row))) for row in half]
    x = stacked([space.graph, *students])
    y = torch.tensor([0.0, *f[half]], dtype=torch.float64)
    kernel = fit(x, y, None, SURROGATE, torch_generator(SEED, "kernel", number))
    pool = sample(space, SpaceSettings(), SETTINGS.pool, rng)
    fresh = np.array([row for row, key in enumerate(pool.keys()) if key not in seen])
    pool = pool.select(fresh)
    mean, variance = kernel.posterior(encoded(space, pool))
    best_f = float(f.max()) if len(f) else 0.0
    pairs = zip(mean.tolist(), variance.sqrt().tolist(), strict=True)
    return pool.keys(), [improvement(mu, sigma, best_f) for mu, sigma in pairs]


@pytest.mark.parametrize("number", [0, 3, 11])
def test_the_proposal_maximises_expected_improvement_among_the_unseen(
    number: int, space: Space, observed: Observed, proposer: PaperProposer
) -> None:
    seen = set(space.identity().keys()) | set(observed[0].keys())
    taken: list[bytes] = []
    for _ in range(3):  # the best, then the second best, as the better ones become known
        keys, scores = by_hand(space, observed, number, seen)
        best = max(scores)
        assert best > min(scores), "a choice among equals would show nothing"
        (key,) = proposer.one(number, *observed, seen).keys()
        assert scores[keys.index(key)] == pytest.approx(best, rel=1e-6)
        taken.append(key)
        seen.add(key)
    assert len(set(taken)) == 3


def test_the_first_proposal_rests_on_the_teacher_alone(
    space: Space, proposer: PaperProposer
) -> None:
    nothing = space.candidates([]), np.array([])
    keys, scores = by_hand(space, nothing, 0, set())
    (key,) = proposer.one(0, *nothing, set()).keys()
    assert scores[keys.index(key)] == pytest.approx(max(scores), rel=1e-6)


def test_a_proposal_depends_on_number_and_observations_only(
    space: Space, observed: Observed, proposer: PaperProposer
) -> None:
    first = proposer.one(4, *observed, set()).keys()
    torch.manual_seed(99)
    np.random.seed(99)
    proposer.one(5, *observed, set())
    fresh = PaperProposer(Source(space, SpaceSettings()), SETTINGS, SURROGATE, SEED)
    assert fresh.one(4, *observed, set()).keys() == first
    assert {proposer.one(n, *observed, set()).keys()[0] for n in range(4, 9)} != set(first)


def test_a_batch_is_one_proposal_after_the_other(
    space: Space,
    observed: Observed,
    proposer: PaperProposer,
    make_history: Callable[..., History],
) -> None:
    """Each knows those before it as seen, and nothing else of them."""
    history = make_history(space, *observed, number=7)
    before = set(history.seen)
    found = proposer.propose(3, history)
    keys: list[bytes] = []
    for number in (7, 8, 9):
        keys += proposer.one(number, *observed, before | set(keys)).keys()
    assert found.candidates.keys() == keys
    assert found.expected == (None, None, None)
    assert history.seen == before


def test_an_empty_space_is_told(
    space: Space, observed: Observed, make_history: Callable[..., History]
) -> None:
    """With nothing allowed the only candidate is the teacher, and that is known."""
    still = Source(space, SpaceSettings(moves=()))
    proposer = PaperProposer(still, SETTINGS, SURROGATE, SEED)
    assert proposer.one(0, *observed, set(space.identity().keys())) is None
    with pytest.raises(SpaceExhaustedError):
        proposer.propose(2, make_history(space, *observed))
