"""Tree-structured Parzen estimator (Bergstra et al. 2011) by Optuna: a baseline from outside."""

from __future__ import annotations

from typing import Any

import numpy as np

from esnac.errors import EsnacError
from esnac.graphs.space import Candidates, joined
from esnac.runtime import derive_seed
from esnac.search.proposer import POOLS, History, Proposal, one_by_one, unseen
from esnac.search.sampler import Source


class TpeProposer:
    """Its parameters: a bit per removable layer, a share per tied set, the number of skips.

    Which skips, of that many, is random. The study is rebuilt from the history for every batch, so
    that a resumed search goes on unchanged.
    """

    def __init__(self, source: Source, seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise EsnacError(
                "The engine tpe needs Optuna: pip install 'esnac[tpe]', or choose another engine."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._source = source
        self._seed = seed
        space, settings = source.space, source.settings
        make = optuna.distributions
        self._distributions: dict[str, Any] = {}
        if "remove" in settings.moves:
            for layer in space.removable:
                self._distributions[f"remove {layer}"] = make.CategoricalDistribution([False, True])
        if "shrink" in settings.moves:
            for tied in range(space.num_tied):
                low = 1 - settings.shrink_limit
                self._distributions[f"share {tied}"] = make.FloatDistribution(low, 1)
        if "skip" in settings.moves and len(space.skips):
            most = max(1, int(max(settings.skip_rates) * len(space.skips)))
            self._distributions["skips"] = make.IntDistribution(0, most)

    def propose(self, n: int, history: History) -> Proposal:
        def one(number: int, seen: set[bytes], chosen: list[Candidates]) -> Candidates | None:
            study = self._study(number, history, joined([history.pending, *chosen]))
            return self._fresh(study, number, seen)

        return one_by_one(n, history, one)

    def _study(self, number: int, history: History, pending: Candidates) -> Any:
        optuna = self._optuna
        states = optuna.trial.TrialState
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(self._seed, "tpe", number) % 2**32, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for row, value in enumerate(history.value):
            self._add(study, history.observed, row, states.COMPLETE, float(value))
        for row in range(len(pending)):
            self._add(study, pending, row, states.RUNNING, None)
        return study

    def _fresh(self, study: Any, number: int, seen: set[bytes]) -> Candidates | None:
        rng = np.random.default_rng(derive_seed(self._seed, "tpe skips", number))
        for _ in range(POOLS):
            trial = study.ask(self._distributions)
            candidate = unseen(self._source.inside(self._candidate(trial.params, rng)), seen)
            if len(candidate):
                return candidate
        return None

    def _candidate(self, parameters: dict[str, Any], rng: np.random.Generator) -> Candidates:
        space = self._source.space
        removed = np.zeros((1, len(space.graph)), dtype=bool)
        for layer in space.removable:
            removed[0, layer] = parameters.get(f"remove {layer}", False)
        share = np.array([parameters.get(f"share {t}", 1.0) for t in range(space.num_tied)])
        skips = np.zeros((1, len(space.skips)), dtype=bool)
        some = rng.permutation(len(space.skips))[: parameters.get("skips", 0)]
        skips[0, some] = True
        return space.resolve(removed, space.kept(1 - share[None]), skips)

    def _add(self, study: Any, candidates: Candidates, row: int, state: Any, value: Any) -> None:
        space = self._source.space
        share = (candidates.kept[row] / space.groups.sizes)[space.first_of_set]
        parameters: dict[str, Any] = {}
        for name in self._distributions:
            kind, _, index = name.partition(" ")
            if kind == "remove":
                parameters[name] = bool(candidates.removed[row, int(index)])
            elif kind == "share":
                parameters[name] = float(max(share[int(index)], self._distributions[name].low))
            else:
                most = self._distributions[name].high
                parameters[name] = int(min(candidates.skips[row].sum(), most))
        study.add_trial(
            self._optuna.trial.create_trial(
                params=parameters, distributions=self._distributions, state=state, value=value
            )
        )
