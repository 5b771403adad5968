"""Random candidates by the published rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from esnac.graphs.space import Candidates, Space, joined
from esnac.search.variation import cross, mutate, shrink_until
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


class Source:
    """Candidates of one space that the objective allows: drawn afresh, or varied from others."""

    def __init__(
        self,
        space: Space,
        settings: SpaceSettings,
        allowed: Callable[[Candidates], np.ndarray] | None = None,
    ) -> None:
        self.space = space
        self.settings = settings
        self._allowed = allowed

    def draw(
        self, n: int, rng: np.random.Generator, removal_rates: tuple[float, ...] | None = None
    ) -> Candidates:
        """n candidates by the published rules; narrower, or fewer, where the objective has limits.

        A candidate outside the limits is shrunk until it lies inside. `removal_rates` replace those
        of the space.
        """
        settings = self.settings
        if removal_rates is not None:
            settings = replace(settings, removal_rates=removal_rates)
        return self.inside(sample(self.space, settings, n, rng))

    def vary(self, parents: Candidates, n: int, rng: np.random.Generator) -> Candidates:
        """About n children of `parents`: two thirds by mutation, one by crossover.

        Parents are drawn with weights that fall with their place (1 / (place + 3)).
        """
        weights = 1 / (3.0 + np.arange(len(parents)))
        weights /= weights.sum()
        first, second = rng.choice(len(parents), size=(2, n), p=weights)
        a, b = parents.select(first), parents.select(second[: n // 3])
        crossed = cross(self.space, a.select(np.arange(n // 3)), b, rng)
        mutable = a.select(np.arange(n // 3, n))
        children = [crossed, mutate(self.space, self.settings, mutable, rng)]
        return self.inside(joined(children))

    def inside(self, candidates: Candidates) -> Candidates:
        """The candidates, shrunk until the objective's limits hold."""
        if self._allowed is None:
            return candidates
        return shrink_until(self.space, self.settings, candidates, self._allowed)
