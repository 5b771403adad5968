from __future__ import annotations

import math

import numpy as np
import pytest
from torch import nn

from esnac import networks
from esnac.graphs.space import Candidates, Space
from esnac.graphs.stage_features import StageFeatures
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings


@pytest.fixture(scope="module")
def space() -> Space:
    """Two convolutions at 8x8, one at 4x4; pooling, flatten and the linear layer have one place."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    return Space(trace(network, (1, 8, 8)), tie="dependency")


def candidate(space: Space, removed: list[int], first: int, second: int, third: int) -> Candidates:
    """Without layers and with other channels of the three convolutions."""
    mask = np.zeros((1, 12), dtype=bool)
    mask[0, removed] = True
    kept = space.identity().kept
    for layer, channels in zip((0, 3, 6), (first, second, third), strict=True):
        kept[0, space.groups.makes_share[layer] > 0] = channels
    return space.resolve(mask, kept, np.zeros((1, len(space.skips)), dtype=bool))


def test_the_teacher_is_whole(space: Space) -> None:
    """Stages 8x8 and 4x4: share of channels (log2), convolutions, norms, others there.

    Then the stage of single places, whose pooling and flatten cannot be removed.
    """
    expected = [0, 1, 1, 1] + [0, 1, 1, 1] + [0, 1] + [0, 0, 0]
    features = StageFeatures(space).encode(space.identity())
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, [expected], atol=1e-12)


def test_features_worked_out_by_hand(space: Space) -> None:
    """Channels 2, 1 and 4 of 4, 4 and 8; a norm and a ReLU at 8x8 and the norm at 4x4 are gone.

    Parameters: (9 + 1) 2, a norm of 1 channel, (2 x 9 + 1) 1, (9 + 1) 4 and (4 + 1) 3 = 96 of the
    teacher's 40 + 8 + 148 + 8 + 296 + 16 + 27 = 543. MACs: 64 (18 + 18) + 16 x 36 + 12 = 2,892 of
    64 (36 + 144) + 16 x 288 + 24 = 16,152.
    """
    student = candidate(space, [1, 2, 7], 2, 1, 4)
    (found,) = StageFeatures(space).encode(student)
    first = [(-1 - 2) / 2, 1, 1 / 2, 1 / 2]
    second = [-1, 1, 0, 1]
    whole = [math.log2(96 / 543), math.log2(2892 / 16152), 0]
    np.testing.assert_allclose(found, [*first, *second, 0, 1, *whole], atol=1e-12)


def test_a_convolution_that_is_gone_and_skips(space: Space) -> None:
    student = candidate(space, [3], 4, 4, 8)
    student.skips[0, :3] = True
    (found,) = StageFeatures(space).encode(student)
    assert found[1] == 1 / 2
    assert found[-1] == 2


@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "mobilenetv2"])
def test_every_network_has_finite_features_that_tell_students_apart(name: str) -> None:
    space = Space(trace(networks.build(name, 10), (3, 16, 16)))
    features = StageFeatures(space).encode(
        sample(space, SpaceSettings(), 50, np.random.default_rng(0))
    )
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 50
