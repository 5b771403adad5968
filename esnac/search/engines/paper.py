"""Proposals of the published engine (Cao, Wang, Kitani, ICLR 2019, section 3.2)."""

from __future__ import annotations

import numpy as np
import torch

from esnac.graphs.encode import Encoder
from esnac.graphs.space import Candidates
from esnac.runtime import derive_seed, torch_generator
from esnac.search.proposer import POOLS, History, Proposal, one_by_one, unseen
from esnac.search.sampler import Source
from esnac.search.settings import SearchSettings
from esnac.surrogate.fit import fit
from esnac.surrogate.settings import SurrogateSettings


class PaperProposer:
    """One fresh kernel per proposal, on a random half of the observations and the teacher (f = 0).

    A proposal is a function of (seed, trial number, observations, architectures seen), so a resumed
    search goes on as if it had never stopped.
    """

    def __init__(
        self, source: Source, settings: SearchSettings, surrogate: SurrogateSettings, seed: int
    ) -> None:
        self._source = source
        self._settings = settings
        self._surrogate = surrogate
        self._seed = seed
        self._encoder = Encoder(source.space)

    def propose(self, n: int, history: History) -> Proposal:
        observed, f = history.observed, history.value
        return one_by_one(n, history, lambda number, seen, _: self.one(number, observed, f, seen))

    def one(
        self, number: int, observed: Candidates, f: np.ndarray, seen: set[bytes]
    ) -> Candidates | None:
        """One candidate whose key is not in `seen`, for trial `number`.

        None when random candidates turn up nothing new.
        """
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", number))
        half = rng.random(len(f)) < self._settings.bagging
        chosen = observed.select(half)
        teacher = self._encoder.encode(self._source.space.identity())
        inputs = np.concatenate([teacher, self._encoder.encode(chosen)])
        rewards = np.concatenate([[0.0], f[half]])
        kernel = fit(
            torch.from_numpy(inputs),
            torch.from_numpy(rewards),
            None,
            self._surrogate,
            torch_generator(self._seed, "kernel", number),
        )
        best_f = float(f.max(initial=0.0))
        for _ in range(POOLS):
            pool = unseen(self._source.draw(self._settings.pool, rng), seen)
            if len(pool):
                encoded = torch.from_numpy(self._encoder.encode(pool))
                scores = kernel.expected_improvement(encoded, None, best_f)
                return pool.select(np.array([int(scores.argmax())]))
        return None
