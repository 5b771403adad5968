"""Random search: the baseline that every engine has to beat."""

from __future__ import annotations

import numpy as np

from esnac.graphs.space import Candidates
from esnac.runtime import derive_seed
from esnac.search.proposer import POOLS, History, Proposal, one_by_one, unseen
from esnac.search.sampler import Source


class RandomProposer:
    """Candidates as the sampler draws them."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source = source
        self._seed = seed

    def propose(self, n: int, history: History) -> Proposal:
        return one_by_one(n, history, lambda number, seen, _: self._one(number, seen))

    def _one(self, number: int, seen: set[bytes]) -> Candidates | None:
        rng = np.random.default_rng(derive_seed(self._seed, "random", number))
        return first_unseen(self._source, rng, seen)


def first_unseen(source: Source, rng: np.random.Generator, seen: set[bytes]) -> Candidates | None:
    """One random candidate that is not in `seen`; None when many draws turn up nothing new."""
    for attempt in range(POOLS):
        pool = unseen(source.draw(4 ** min(attempt, 4), rng), seen)
        if len(pool):
            return pool.select(np.array([0]))
    return None
