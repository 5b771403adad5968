"""Random candidates by the published rules."""

from __future__ import annotations

import numpy as np

from esnac.graphs.space import Candidates, Space
from esnac.search_spaces import SpaceSettings


def sample(space: Space, settings: SpaceSettings, n: int, rng: np.random.Generator) -> Candidates:
    """n candidates; removal, shrinking and skips are drawn independently of each other.

    The removal and skip rates are drawn once per candidate, the share of channels that goes once
    per candidate and tied set of groups.
    """
    removed = np.zeros((n, len(space.graph)), dtype=bool)
    skips = np.zeros((n, len(space.skips)), dtype=bool)
    shrink = np.zeros((n, space.num_tied))
    if "remove" in settings.moves:
        rates = rng.choice(settings.removal_rates, size=(n, 1))
        removed[:, space.removable] = rng.random((n, len(space.removable))) < rates
    if "shrink" in settings.moves:
        shrink = rng.random((n, space.num_tied)) * settings.shrink_limit
    if "skip" in settings.moves:
        rates = rng.choice(settings.skip_rates, size=(n, 1))
        skips = rng.random((n, len(space.skips)), dtype=np.float32) < rates
    return space.resolve(removed, space.kept(shrink), skips)
