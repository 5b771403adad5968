"""Proposals of the published engine (Cao, Wang, Kitani, ICLR 2019, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from esnac.errors import EsnacError
from esnac.graphs.encode import Encoder
from esnac.graphs.space import Candidates, Space
from esnac.runtime import derive_seed, torch_generator
from esnac.search.sampler import sample
from esnac.search.settings import SearchSettings
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.fit import fit
from esnac.surrogate.settings import SurrogateSettings

#: Fresh pools drawn, when every candidate of a pool is known already, before giving up.
_POOLS = 20


class SpaceExhaustedError(EsnacError):
    """No architecture is left that has not been proposed."""


@dataclass(frozen=True)
class Observations:
    """Evaluated students and their rewards f (n)."""

    candidates: Candidates
    f: np.ndarray


class PaperProposer:
    """One fresh kernel per proposal, on a random half of the observations and the teacher (f = 0).

    A proposal is a function of (seed, trial number, observations, architectures seen), so a resumed
    search goes on as if it had never stopped.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        space_settings: SpaceSettings,
        surrogate: SurrogateSettings,
        seed: int,
    ) -> None:
        self._space = space
        self._settings = settings
        self._space_settings = space_settings
        self._surrogate = surrogate
        self._seed = seed
        self._encoder = Encoder(space)

    def propose(self, number: int, observed: Observations, seen: set[bytes]) -> Candidates:
        """One candidate whose key is not in `seen`, for trial `number`.

        Raises SpaceExhaustedError when random candidates turn up nothing new.
        """
        rng = np.random.default_rng(derive_seed(self._seed, "proposal", number))
        half = rng.random(len(observed.f)) < self._settings.bagging
        chosen = observed.candidates.select(half)
        teacher = self._encoder.encode(self._space.identity())
        inputs = np.concatenate([teacher, self._encoder.encode(chosen)])
        rewards = np.concatenate([[0.0], observed.f[half]])
        kernel = fit(
            torch.from_numpy(inputs),
            torch.from_numpy(rewards),
            None,
            self._surrogate,
            torch_generator(self._seed, "kernel", number),
        )
        best_f = float(observed.f.max(initial=0.0))
        for _ in range(_POOLS):
            pool = sample(self._space, self._space_settings, self._settings.pool, rng)
            keys = pool.keys()
            fresh = [row for row, key in enumerate(keys) if key not in seen]
            if not fresh:
                continue
            pool = pool.select(np.array(fresh))
            encoded = torch.from_numpy(self._encoder.encode(pool))
            scores = kernel.expected_improvement(encoded, None, best_f)
            return pool.select(np.array([int(scores.argmax())]))
        raise SpaceExhaustedError(
            "Every architecture that the search space draws has been proposed."
        )
