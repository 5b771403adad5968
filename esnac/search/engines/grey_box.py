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
from esnac.search.objectives import Objective
from esnac.search.proposer import (
    History,
    Proposal,
    SpaceExhaustedError,
    unseen,
)
from esnac.search.sampler import Source
from esnac.search.settings import SearchSettings
from esnac.search.trial import Expectation
from esnac.surrogate.acquisition import expected_improvement_of_product
from esnac.surrogate.ensemble import Prediction

#: Half-width of a central 90 % interval in standard deviations.
_NINETY = 1.6449


class Model(Protocol):
    """A model of z that is trained further step by step."""

    @property
    def afresh_every(self) -> int: ...

    def fit(self, x: Tensor, y: Tensor, seed: int, *, afresh: bool) -> None: ...

    def predict(self, x: Tensor) -> Prediction: ...


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
        self._step = -1

    def propose(self, n: int, history: History) -> Proposal:
        if not len(history.observed):
            return self._spread(n, history)
        self._learn(history)
        pool = self._pool(history)
        if not len(pool):
            raise SpaceExhaustedError
        # Students proposed earlier in this step are in the pool; others under evaluation are not.
        elsewhere = unseen(history.pending, set(pool.keys()))
        return self._batch_of(n, history, joined([pool, elsewhere]))

    def _spread(self, n: int, history: History) -> Proposal:
        """The first batch: spread evenly over the sizes that are worth knowing."""
        rng = np.random.default_rng(derive_seed(self._seed, "first", history.step))
        pool = self._source.draw(self._settings.pool, rng)
        share = self._objective.size(pool)
        low, high = self._settings.spread
        batch = self._settings.batch
        chosen: list[Candidates] = []
        taken = set(history.seen)
        done = len(history.pending)
        for place in range(done, done + n):
            fresh = unseen(pool, taken)
            if not len(fresh):
                break
            share = self._objective.size(fresh)
            wanted = low + (high - low) * (place % batch + 0.5) / batch
            pick = fresh.select(np.array([int(np.abs(share - wanted).argmin())]))
            taken.update(pick.keys())
            chosen.append(pick)
        if not chosen:
            raise SpaceExhaustedError
        return Proposal(joined(chosen), (None,) * len(chosen))

    def _learn(self, history: History) -> None:
        """Brings the model to this step, by replay from the last fresh start where needed."""
        every = self._model.afresh_every
        first = history.step - history.step % every
        if not first <= self._step <= history.step:
            self._step = first - 1
        for step in range(self._step + 1, history.step + 1):
            known = np.flatnonzero(history.steps < step)
            if not len(known):
                continue
            z = self._objective.log_ratio(history.accuracy[known])
            x = self._encode(history.observed.select(known))
            seed = derive_seed(self._seed, "model", step)
            self._model.fit(x, torch.from_numpy(z), seed, afresh=step == first)
        self._step = history.step

    def _pool(self, history: History) -> Candidates:
        """The most promising candidates of this step, those proposed in it already included."""
        rng = np.random.default_rng(derive_seed(self._seed, "pool", history.step))
        settings = self._settings
        parents, incumbent = self._parents(history)
        taken = history.seen - set(history.pending.keys())
        drawn = self._source.draw(settings.pool // 2, rng)
        varied = self._source.vary(parents, settings.pool // 2, rng)
        pool = unseen(joined([varied, drawn]), taken)
        scores = self._scores(pool, incumbent)
        for _ in range(settings.rounds):  # climb from the best of what was found
            if not len(pool):
                break
            best = pool.select(np.argsort(-scores, kind="stable")[: settings.parents])
            children = self._source.vary(best, settings.pool // 4, rng)
            more = unseen(children, taken | set(pool.keys()))
            pool = joined([pool, more])
            scores = np.concatenate([scores, self._scores(more, incumbent)])
        return pool.select(np.argsort(-scores, kind="stable")[: settings.shortlist])

    def _parents(self, history: History) -> tuple[Candidates, float]:
        """The best observed students by what the model makes of them, and the best such value."""
        top = np.argsort(-history.value, kind="stable")[: self._settings.considered]
        students = history.observed.select(top)
        mean, _ = self._model.predict(self._encode(students)).marginal()
        value = self._objective.weight(students) * np.exp(mean.numpy())
        order = np.argsort(-value, kind="stable")
        return students.select(order[: self._settings.parents]), float(value[order[0]])

    def _scores(self, candidates: Candidates, incumbent: float) -> np.ndarray:
        """Log expected improvement over `incumbent`, averaged over the members (n)."""
        if not len(candidates):
            return np.zeros(0)
        parts = []
        for start in range(0, len(candidates), 250):
            part = candidates.select(np.arange(start, min(start + 250, len(candidates))))
            prediction = self._model.predict(self._encode(part))
            variance = prediction.covariance.diagonal(dim1=1, dim2=2)
            parts.append(self._improvement(part, prediction.mean, variance, incumbent))
        return torch.cat(parts).numpy()

    def _improvement(
        self, candidates: Candidates, mean: Tensor, variance: Tensor, incumbent: float
    ) -> Tensor:
        weight = torch.from_numpy(self._objective.weight(candidates))
        values = expected_improvement_of_product(weight, mean, variance, incumbent)
        return values.mean(0).clamp_min(1e-300).log() + 1e-9 * mean.mean(0)

    def _batch_of(self, n: int, history: History, pool: Candidates) -> Proposal:
        """n of the pool, each the best once those before it are believed to come out as expected.

        Pending students are believed first, in order, which makes asking in parts the same.
        """
        prediction = self._model.predict(self._encode(pool))
        expected = self._expected(prediction)
        covariance = prediction.covariance.clone()
        _, incumbent = self._parents(history)
        weight = self._objective.weight(pool)
        open_rows = np.ones(len(pool), dtype=bool)
        row_of = {key: row for row, key in enumerate(pool.keys())}
        pending = history.pending.keys()
        queue = [row_of[key] for key in pending if key in row_of]
        chosen: list[int] = []
        while len(chosen) < n and (queue or open_rows.any()):
            if queue:
                row = queue.pop(0)
            else:
                variance = covariance.diagonal(dim1=1, dim2=2)
                scores = self._improvement(pool, prediction.mean, variance, incumbent).numpy()
                row = int(np.where(open_rows, scores, -np.inf).argmax())
                chosen.append(row)
            open_rows[row] = False
            column = covariance[:, :, row]
            spread = (covariance[:, row, row] + prediction.noise)[:, None, None]
            covariance = covariance - column[:, :, None] * column[:, None, :] / spread
            mean = float(prediction.mean[:, row].mean())
            incumbent = max(incumbent, weight[row] * math.exp(mean))
        rows = np.array(chosen, dtype=np.int64)
        return Proposal(pool.select(rows), tuple(expected[row] for row in chosen))

    def _expected(self, prediction: Prediction) -> list[Expectation]:
        """What an evaluation of each is expected to measure."""
        mean, variance = prediction.marginal()
        spread = _NINETY * (variance + prediction.noise.mean()).sqrt()
        teacher = self._objective.teacher_accuracy
        rows = zip(mean.tolist(), spread.tolist(), strict=True)
        return [
            Expectation(
                min(teacher * math.exp(m), 1.0),
                teacher * math.exp(m - s),
                min(teacher * math.exp(m + s), 1.0),
            )
            for m, s in rows
        ]

    def _encode(self, candidates: Candidates) -> Tensor:
        return torch.from_numpy(self._encoded(candidates))
