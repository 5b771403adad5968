"""Regularised evolution (Real, Aggarwal, Huang, Le, AAAI 2019): tournaments, the oldest dies."""

from __future__ import annotations

import numpy as np

from esnac.graphs.space import Candidates
from esnac.runtime import derive_seed
from esnac.search.engines.random import first_unseen
from esnac.search.proposer import History, Proposal, one_by_one, unseen
from esnac.search.sampler import Source
from esnac.search.settings import SearchSettings
from esnac.search.variation import mutate

#: Mutations tried for one child before it is drawn at random.
_TRIES = 50


class EvolutionProposer:
    """Children of tournament winners among the youngest `population` students.

    The first `population` proposals are random. The students of one batch do not know of each
    other, as on parallel workers.
    """

    def __init__(self, source: Source, settings: SearchSettings, seed: int) -> None:
        self._source = source
        self._settings = settings
        self._seed = seed

    def propose(self, n: int, history: History) -> Proposal:
        return one_by_one(n, history, lambda number, seen, _: self._one(number, history, seen))

    def _one(self, number: int, history: History, seen: set[bytes]) -> Candidates | None:
        settings = self._settings
        young = np.arange(len(history.value))[-settings.population :]
        rng = np.random.default_rng(derive_seed(self._seed, "evolution", number))
        if number >= settings.population and len(young):
            rivals = rng.choice(young, size=min(settings.tournament, len(young)), replace=False)
            winner = rivals[history.value[rivals].argmax()]
            parents = history.observed.select(np.full(_TRIES, winner))
            children = mutate(self._source.space, self._source.settings, parents, rng)
            children = unseen(self._source.inside(children), seen)
            if len(children):
                return children.select(np.array([0]))
        return first_unseen(self._source, rng, seen)
