"""Engines that model log accuracy and compute the rest: "esnac" (the default) and "features".

What is maximised is value = weight x accuracy / teacher's accuracy with a weight that is known for
every candidate (c (2 - c) for the published f), so only z = log(accuracy / teacher's accuracy) is
modelled and the value is composed exactly: grey-box Bayesian optimisation (Astudillo and Frazier
2021). Candidates come from the sampler and from variation of the best, as evolution does (White et
al. 2021 find that mutation matters most); batches by Kriging believer. "esnac" models the accuracy
by an ensemble of deep kernels on the graph, "features" by one Gaussian process on stage features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from esnac.graphs.space import Candidates, joined
from esnac.runtime import derive_seed
from esnac.search.engines.acquisitions import (
    Acquisition,
    HypervolumeGain,
    Improvement,
    Predictor,
)
from esnac.search.objectives import Objective
from esnac.search.proposer import (
    History,
    Proposal,
    SpaceExhaustedError,
    unexpected,
    unseen,
)
from esnac.search.sampler import Source
from esnac.search.settings import SearchSettings
from esnac.search.trial import Expectation

#: Half-width of a central 90 % interval in standard deviations.
_NINETY = 1.6449
#: Chances that a layer is removed where few are: the published ones begin at 0.3. And the share of
#: the layers below which those removed are few.
_FEW_REMOVED = (0.0, 0.05, 0.1, 0.2)
_FEW = 0.25


class Model(Predictor, Protocol):
    """A model of z that is trained further step by step."""

    @property
    def afresh_every(self) -> int: ...

    @property
    def warm(self) -> bool: ...

    def fit(
        self, x: Tensor, y: Tensor, seed: int, *, step: int = 0, afresh: bool = False
    ) -> None: ...


class GreyBoxProposer:
    """Proposes from a model that is trained further step by step.

    The model of a step is a function of the seed and of the observations of the steps since the
    last fresh start, which it replays if need be; so a resumed search goes on unchanged.
    """

    def __init__(
        self,
        source: Source,
        objective: Objective,
        settings: SearchSettings,
        model: Model,
        encode: Callable[[Candidates], np.ndarray],
        seed: int,
    ) -> None:
        self._source = source
        self._objective = objective
        self._settings = settings
        self._model = model
        self._encoded = encode
        self._seed = seed
        #: The last step that the model knows (-1: none).
        self._step = -1

    def propose(self, n: int, history: History) -> Proposal:
        if len(history.observed) < max(self._settings.batch // 2, 1):
            return self._first(n, history)
        self._learn(history)
        acquisition = self._acquisition(history)
        pool = self._pool(history, acquisition)
        if not len(pool):
            raise SpaceExhaustedError
        # Students proposed earlier in this step are in the pool; others under evaluation are not.
        elsewhere = unseen(history.pending, set(pool.keys()))
        chosen = acquisition.pick(joined([pool, elsewhere]), n, history.pending)
        if not chosen:
            raise SpaceExhaustedError
        candidates = pool.select(np.array(chosen, dtype=np.int64))
        return Proposal(candidates, tuple(self._expected(candidates, _correction(history))))

    def _first(self, n: int, history: History) -> Proposal:
        """Until there is enough to learn from: spread evenly over the sizes worth knowing.

        Every other student has few layers removed. Of each size the most accurate, if a model of an
        earlier search tells them apart.
        """
        settings = self._settings
        rng = np.random.default_rng(derive_seed(self._seed, "first", history.step))
        keys = history.pending.keys()
        drawn = [self._source.draw(settings.pool, rng, rates) for rates in (None, _FEW_REMOVED)]
        pool = unseen(joined(drawn), history.seen - set(keys))
        if not len(pool):
            raise SpaceExhaustedError
        size = self._objective.size(pool)
        low, high = np.clip(settings.spread, size.min(), size.max())  # limits may leave out some
        few = pool.removed.sum(axis=1) < _FEW * len(self._source.space.removable)
        worth = self._from_earlier(pool)
        row_of = {key: row for row, key in enumerate(pool.keys())}
        free = np.ones(len(pool), dtype=bool)
        free[[row_of[key] for key in keys if key in row_of]] = False
        chosen: list[int] = []
        for place in range(history.number, history.number + n):
            if not free.any():
                break
            wanted = low + (high - low) * (place % settings.batch + 0.5) / settings.batch
            distance = np.abs(size - wanted)
            near = free & (distance <= (high - low) / settings.batch / 2)
            if worth is not None and near.any():
                row = int(np.where(near, worth, -np.inf).argmax())
            else:
                other = few != (place % 2 == 0)  # only if there is none like that
                row = int(np.where(free, distance + other, np.inf).argmin())
            free[row] = False
            chosen.append(row)
        if not chosen:
            raise SpaceExhaustedError
        return unexpected(pool.select(np.array(chosen)))

    def _from_earlier(self, pool: Candidates) -> np.ndarray | None:
        """Expected z from an earlier search alone (N); None without one."""
        if not self._model.warm:
            return None
        nothing = self._encode(pool.select(np.zeros(0, dtype=np.int64)))
        seed = derive_seed(self._seed, "model", "earlier")
        self._model.fit(nothing, torch.zeros(0, dtype=torch.float64), seed, afresh=True)
        mean, _ = self._model.predict(self._encode(pool)).marginal()
        found: np.ndarray = mean.numpy()
        return found

    def _learn(self, history: History) -> None:
        """Brings the model to this step, by replay of the steps that it rests on where needed."""
        first = max(history.step - self._model.afresh_every + 1, 0)
        goes_on = 0 <= self._step <= history.step
        start = self._step + 1 if goes_on else first
        self._step = -1  # until all fits have succeeded
        for step in range(start, history.step + 1):
            known = np.flatnonzero(history.since <= step)
            if not len(known):
                continue
            z = self._objective.log_ratio(history.accuracy_at(step)[known])
            x = self._encode(history.observed.select(known))
            seed = derive_seed(self._seed, "model", step)
            # Also where no step before had a result: the model may be one of another history.
            afresh = (step == first and not goes_on) or not (history.since < step).any()
            self._model.fit(x, torch.from_numpy(z), seed, step=step, afresh=afresh)
        self._step = history.step

    def _acquisition(self, history: History) -> Acquisition:
        order = np.argsort(-history.value, kind="stable")
        students = history.observed.select(order[: self._settings.considered])
        if self._objective.settings.kind == "pareto":
            seed = derive_seed(self._seed, "hypervolume", history.step)
            return HypervolumeGain(self._model, self._encode, self._objective, students, seed)
        return Improvement(self._model, self._encode, self._objective, students)

    def _pool(self, history: History, acquisition: Acquisition) -> Candidates:
        """The most promising candidates of this step, those proposed in it already included."""
        rng = np.random.default_rng(derive_seed(self._seed, "pool", history.step))
        settings = self._settings
        parents = acquisition.parents(settings.parents)
        taken = history.seen - set(history.pending.keys())
        drawn = self._source.draw(settings.pool // 2, rng)
        varied = self._source.vary(parents, settings.pool // 2, rng)
        pool = unseen(joined([varied, drawn]), taken)
        scores = acquisition.scores(pool)
        for _ in range(settings.rounds):  # climb from the best of what was found
            if not len(pool):
                break
            best = acquisition.promising(pool, scores, settings.parents)
            children = self._source.vary(best, settings.pool // 4, rng)
            more = unseen(children, taken | set(pool.keys()))
            pool = joined([pool, more])
            scores = np.concatenate([scores, acquisition.scores(more)])
        return pool.select(np.argsort(-scores, kind="stable")[: settings.shortlist])

    def _expected(self, candidates: Candidates, correction: float) -> list[Expectation]:
        """What an evaluation of each is expected to measure; `correction` widens the intervals."""
        prediction = self._model.predict(self._encode(candidates))
        mean, variance = prediction.marginal()
        spread = correction * _NINETY * (variance + prediction.noise.mean()).sqrt()
        teacher = self._objective.teacher_accuracy
        found = []
        for m, s in zip(mean.tolist(), spread.tolist(), strict=True):
            bounds = (min(teacher * math.exp(z), 1.0) for z in (m, m - s, m + s))
            # Digits beyond these depend on how many candidates are computed at a time.
            found.append(Expectation(*(round(bound, 6) for bound in bounds)))
        return found

    def _encode(self, candidates: Candidates) -> Tensor:
        return torch.from_numpy(self._encoded(candidates))


def _correction(history: History) -> float:
    """The factor by which past intervals were too narrow, learnt step by step.

    The best of many candidates are those whose spread is underrated, so intervals fail more often
    than the model believes. Each step multiplies the factor by the square root of the root mean
    square error of its expectations, in units of the spread they stated.
    """
    factor = 1.0
    for step in np.unique(history.steps):
        errors = []
        for row in np.flatnonzero(history.steps == step):
            expected = history.expected[row]
            if expected is None or not 0 < expected.low < expected.accuracy:
                continue
            if history.accuracy[row] > 0:
                spread = math.log(expected.accuracy / expected.low) / _NINETY
                errors.append(math.log(history.accuracy[row] / expected.accuracy) / spread)
        if errors:
            factor *= float(np.clip(np.sqrt(np.mean(np.square(errors))), 0.5, 2.0)) ** 0.5
    return float(np.clip(factor, 0.7, 3.0))
