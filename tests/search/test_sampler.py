import numpy as np
import pytest

from esnac import networks
from esnac.graphs.cost import candidate_costs
from esnac.graphs.space import Space, joined
from esnac.graphs.trace import trace
from esnac.search.sampler import Source, sample
from esnac.search_spaces import SpaceSettings


@pytest.fixture(scope="module")
def space():
    return Space(trace(networks.build("resnet18", 100, 3), (3, 32, 32)))


def test_rates_are_the_published_ones(space):
    """On average half of the layers and channels, and 2 % of the skips into layers that stay."""
    drawn = sample(space, SpaceSettings(), 4000, np.random.default_rng(0))
    removed = drawn.removed[:, space.removable].mean(axis=1)
    assert removed.mean() == pytest.approx(0.5, abs=0.01)
    assert np.quantile(removed, [0.02, 0.98]) == pytest.approx([0.2, 0.8], abs=0.06)
    wide = (space.groups.sizes == 512) & ~space.frozen
    assert drawn.kept[:, wide].mean() == pytest.approx(256, abs=8)
    assert drawn.kept[:, wide].min() >= 1
    live = ~drawn.removed[:, space.skips[:, 1]]
    assert drawn.skips.sum() / live.sum() == pytest.approx(0.0196, abs=0.002)


def test_moves_can_be_switched_off(space):
    drawn = sample(space, SpaceSettings(moves=("skip",)), 50, np.random.default_rng(0))
    assert not drawn.removed.any()
    assert (drawn.kept == space.groups.sizes).all()
    assert drawn.skips.any()


def test_shrink_limit(space):
    drawn = sample(space, SpaceSettings(shrink_limit=0.25), 200, np.random.default_rng(0))
    assert (drawn.kept >= np.floor(0.75 * space.groups.sizes)).all()


def test_same_generator_same_candidates(space):
    a, b = (sample(space, SpaceSettings(), 5, np.random.default_rng(3)) for _ in range(2))
    assert a.keys() == b.keys()


def test_a_source_without_limits_draws_what_the_sampler_draws(space):
    source = Source(space, SpaceSettings())
    drawn = source.draw(9, np.random.default_rng(3))
    assert drawn.keys() == sample(space, SpaceSettings(), 9, np.random.default_rng(3)).keys()


def test_a_source_with_a_limit_keeps_it(space):
    """A tenth of ResNet-18: what is larger is shrunk, and none is lost."""
    limit = candidate_costs(space, space.identity())[0][0] // 10

    def allowed(candidates):
        return candidate_costs(space, candidates)[0] <= limit

    free = Source(space, SpaceSettings()).draw(100, np.random.default_rng(0))
    assert 0.1 < allowed(free).mean() < 0.9
    source = Source(space, SpaceSettings(), allowed)
    drawn = source.draw(100, np.random.default_rng(0))
    assert len(drawn) == 100
    assert allowed(drawn).all()
    varied = source.vary(drawn, 90, np.random.default_rng(0))
    assert len(varied) == 90
    assert allowed(varied).all()


def test_parents_are_drawn_by_their_place(space):
    """Eight parents that differ in a removed layer; mutation of skips alone leaves that visible.

    The weights 1/3, 1/4, ... 1/10 add up to 1.4290.
    """
    parents = joined([space.identity()] * 8)
    for place in range(8):
        parents.removed[place, space.removable[place]] = True
    source = Source(space, SpaceSettings(moves=("skip",)))
    children = source.vary(parents, 9000, np.random.default_rng(0))
    mutated = children.select(np.arange(3000, 9000))
    shares = mutated.removed[:, space.removable[:8]].mean(axis=0)
    expected = 1 / np.arange(3, 11) / 1.4290
    assert shares == pytest.approx(expected, abs=0.02)
    # Crossover is what puts two of them together, or leaves both out.
    apart = children.removed.sum(axis=1) != 1
    assert apart[:3000].any()
    assert not apart[3000:].any()
