import numpy as np
import pytest

from esnac import networks
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
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
