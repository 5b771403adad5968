"""Which candidates a grey-box engine takes: by expected improvement, or by hypervolume gained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import GenericMCMultiOutputObjective
from botorch.models.model import Model
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

from esnac.graphs.space import Candidates
from esnac.runtime import seeded
from esnac.search.objectives import Objective, dominators
from esnac.surrogate.acquisition import expected_improvement_of_product
from esnac.surrogate.gaussian_process import exact
from esnac.surrogate.prediction import Prediction

# BoTorch would compile a kernel in C++ when it first computes a hypervolume: a minute, files in the
# user's home, a lock that outlives a killed process, other last digits than without a compiler.
logei._load_attempted = True

#: Candidates that are encoded and scored at a time.
_CHUNK = 250
#: Samples of the accuracy from which the hypervolume gained is estimated.
_SAMPLES = 64
#: The best candidates among which those to vary next are chosen as a batch.
_AMONG = 200
#: Variance of z that a belief leaves, for the sake of rounding.
_JITTER = 1e-6


class Predictor(Protocol):
    """A model of z = log(accuracy / teacher's accuracy) with one or more members."""

    def predict(self, x: Tensor) -> Prediction: ...

    def points(self, x: Tensor, member: int) -> Tensor: ...

    def at(self, points: Tensor) -> Prediction: ...

    def process(self, member: int) -> tuple[Model, float, float]: ...

    @property
    def size(self) -> int: ...


class Acquisition(Protocol):
    """Made anew for every step; `students` are the observed ones that are worth a look."""

    def parents(self, k: int) -> Candidates: ...

    def scores(self, candidates: Candidates) -> np.ndarray: ...

    def promising(self, pool: Candidates, scores: np.ndarray, k: int) -> Candidates: ...

    def pick(self, pool: Candidates, n: int, pending: Candidates) -> list[int]: ...


class _Ranked(ABC):
    """What both acquisitions know: the model, the objective, the students in order of merit."""

    def __init__(
        self,
        model: Predictor,
        encode: Callable[[Candidates], Tensor],
        objective: Objective,
        students: Candidates,
    ) -> None:
        self._model = model
        self._encode = encode
        self._objective = objective
        #: Points (M x d) of candidates that `_predict` has met: many are scored, tried as parents
        #: and picked from.
        self._known: dict[bytes, Tensor] = {}
        mean, _ = self._predict(students).marginal()
        merit = self._merit(students, np.exp(mean.numpy()))
        self._students = students.select(np.argsort(-merit, kind="stable"))

    @abstractmethod
    def _merit(self, students: Candidates, ratio: np.ndarray) -> np.ndarray:
        """Larger is better (n), of students with accuracies over the teacher's `ratio` (n)."""

    def parents(self, k: int) -> Candidates:
        return self._students.select(np.arange(min(k, len(self._students))))

    def promising(self, pool: Candidates, scores: np.ndarray, k: int) -> Candidates:
        """The k candidates, by their `scores`, from which it is worth to go on."""
        return pool.select(np.argsort(-scores, kind="stable")[:k])

    def _predict(self, candidates: Candidates) -> Prediction:
        keys = candidates.keys()
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            x = self._encode(candidates.select(np.array(new, dtype=np.int64)))
            members = [self._model.points(x, member) for member in range(self._model.size)]
            found = torch.stack(members, dim=1)
            self._known.update(zip((keys[row] for row in new), found, strict=True))
        return self._model.at(torch.stack([self._known[key] for key in keys], dim=1))


def _in_chunks(score: Callable[[Candidates], np.ndarray], candidates: Candidates) -> np.ndarray:
    """Scores (N), of some candidates at a time."""
    parts = [np.zeros(0)]
    for start in range(0, len(candidates), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(candidates)))
        parts.append(score(candidates.select(rows)))
    return np.concatenate(parts)


def _believed(pool: Candidates, pending: Candidates) -> list[int]:
    """The rows of `pool` that hold the pending students, in their order."""
    row_of = {key: row for row, key in enumerate(pool.keys())}
    return [row_of[key] for key in pending.keys() if key in row_of]  # noqa: SIM118


class Improvement(_Ranked):
    """Expected improvement of the value w e^z, averaged over the members; Kriging believer.

    A member is an opinion of its own: it measures the improvement over what it makes of the best
    student itself, and believes that a choice came out as it expected (Ginsbourger et al. 2010). It
    believes so without noise: the value is sought, so to measure a choice again gains nothing, and
    nor does its like.
    """

    @cached_property
    def _best(self) -> Tensor:
        """What members make of the best student (M x 1); its noisy value would be too good."""
        weight = torch.from_numpy(self._objective.weight(self._students))
        return (weight * self._predict(self._students).mean.exp()).amax(dim=1, keepdim=True)

    def _merit(self, students: Candidates, ratio: np.ndarray) -> np.ndarray:
        return self._objective.weight(students) * ratio

    def scores(self, candidates: Candidates) -> np.ndarray:
        return _in_chunks(self._score, candidates)

    def _score(self, candidates: Candidates) -> np.ndarray:
        prediction = self._predict(candidates)
        variance = prediction.covariance.diagonal(dim1=1, dim2=2)
        weight = self._objective.weight(candidates)
        return _log_improvement(weight, prediction.mean, variance, self._best)

    def promising(self, pool: Candidates, scores: np.ndarray, k: int) -> Candidates:
        """As a batch: the best alone would be alike, and so would all that comes of them."""
        best = super().promising(pool, scores, _AMONG)
        nothing = best.select(np.zeros(0, dtype=np.int64))
        return best.select(np.array(self.pick(best, k, nothing), dtype=np.int64))

    def pick(self, pool: Candidates, n: int, pending: Candidates) -> list[int]:
        """n rows of `pool`, each the best once those before it came out as expected.

        Pending students are believed first, in order, which makes asking in parts the same.
        """
        prediction = self._predict(pool)
        covariance, best = prediction.covariance, self._best
        variance = covariance.diagonal(dim1=1, dim2=2)
        factor = covariance[:, :, :0]  # pivoted Cholesky, a column (M x n) for each choice
        weight = self._objective.weight(pool)
        queue = _believed(pool, pending)
        free = np.ones(len(pool), dtype=bool)
        chosen: list[int] = []
        while queue or (len(chosen) < n and free.any()):
            if queue:
                row = queue.pop(0)
            else:
                scores = _log_improvement(weight, prediction.mean, variance, best)
                row = int(np.where(free, scores, -np.inf).argmax())
                chosen.append(row)
            free[row] = False
            column = covariance[:, :, row] - (factor @ factor[:, row, :, None])[..., 0]
            column = column / (column[:, row, None] + _JITTER).sqrt()
            factor = torch.cat([factor, column[..., None]], dim=2)
            variance = variance - column**2
            best = torch.maximum(best, weight[row] * prediction.mean[:, row, None].exp())
        return chosen


def _log_improvement(
    weight: np.ndarray, mean: Tensor, variance: Tensor, best: Tensor
) -> np.ndarray:
    """Log of the members' mean improvement (n); by the mean where all of it underflows."""
    gain = expected_improvement_of_product(torch.from_numpy(weight), mean, variance, best)
    found: np.ndarray = (gain.mean(0).clamp_min(1e-300).log() + 1e-9 * mean.mean(0)).numpy()
    return found


class HypervolumeGain(_Ranked):
    """qLogNEHVI (Ament et al. 2023) on accuracy and exactly known measures, larger is better.

    A point is an embedding followed by the known measures, so that the process models z alone. The
    members take turns: the k-th choice of a step rests on member k modulo their number.
    """

    def __init__(
        self,
        model: Predictor,
        encode: Callable[[Candidates], Tensor],
        objective: Objective,
        students: Candidates,
        seed: int,
    ) -> None:
        super().__init__(model, encode, objective, students)
        self._seed = seed

    def _merit(self, students: Candidates, ratio: np.ndarray) -> np.ndarray:
        objective = self._objective
        return -dominators(objective.gains(students, objective.teacher_accuracy * ratio))

    def scores(self, candidates: Candidates) -> np.ndarray:
        acquisition = self._acquisition(0, None)
        return _in_chunks(lambda part: _values(acquisition, self._points(part, 0)), candidates)

    def pick(self, pool: Candidates, n: int, pending: Candidates) -> list[int]:
        believed = _believed(pool, pending)
        free = np.ones(len(pool), dtype=bool)
        free[believed] = False
        chosen: list[int] = []
        while len(chosen) < n and free.any():
            member = (len(believed) + len(chosen)) % self._model.size
            points = self._points(pool, member)
            taken = believed + chosen
            acquisition = self._acquisition(member, points[taken] if taken else None)
            scores = _values(acquisition, points)
            row = int(np.where(free, scores, -np.inf).argmax())
            free[row] = False
            chosen.append(row)
        return chosen

    def _points(self, candidates: Candidates, member: int) -> Tensor:
        known = torch.from_numpy(self._objective.known(candidates))
        return torch.cat([self._model.points(self._encode(candidates), member), known], dim=1)

    def _acquisition(self, member: int, pending: Tensor | None) -> Any:
        process, mean, scale = self._model.process(member)
        count = len(self._objective.known_measures)

        def measures(samples: Tensor, X: Tensor | None) -> Tensor:  # called with X=
            assert X is not None
            values = X[..., -count:].expand(*samples.shape[:-1], count)
            return torch.cat([(mean + scale * samples).exp(), values], dim=-1)

        # Pruning draws from the global generator.
        with seeded(self._seed, torch.device("cpu")), exact():
            return qLogNoisyExpectedHypervolumeImprovement(
                model=_Leading(process, count),
                ref_point=[0.0] * (count + 1),
                X_baseline=self._points(self._students, member),
                sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=self._seed % 2**31),
                objective=GenericMCMultiOutputObjective(measures),
                X_pending=pending,
                prune_baseline=True,
                cache_root=False,
            )


def _values(acquisition: Any, points: Tensor) -> np.ndarray:
    """The values of an acquisition of BoTorch at points (n x D)."""
    with torch.no_grad(), exact():
        parts = [acquisition(part[:, None]) for part in points.split(_CHUNK)]
    values: np.ndarray = torch.cat(parts).numpy()
    return values


class _Leading(Model):
    """A process on all but the last `extra` columns of its points."""

    def __init__(self, process: Model, extra: int) -> None:
        super().__init__()
        self._process = process
        self._extra = extra

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def posterior(self, X: Tensor, *args: Any, **keywords: Any) -> Any:
        return self._process.posterior(X[..., : -self._extra], *args, **keywords)
