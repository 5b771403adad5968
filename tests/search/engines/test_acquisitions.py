"""Choices among a few candidates whose posterior is made up, against choices worked out plainly."""

from __future__ import annotations

import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from torch import Tensor

from esnac.graphs.space import Candidates, Space, joined
from esnac.search.engines.acquisitions import HypervolumeGain, Improvement
from esnac.search.objectives import Objective, hypervolume
from esnac.search.sampler import sample
from esnac.search.settings import ObjectiveSettings
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.ensemble import Prediction

NORMAL = NormalDist()
COUNT = 30


class MadeUp:
    """Two members with a given posterior at each of the candidates, which `encode` numbers."""

    size = 2

    def __init__(self, candidates: Candidates, seed: int = 0) -> None:
        self.row_of = {key: row for row, key in enumerate(candidates.keys())}
        count = len(self.row_of)
        rng = np.random.default_rng(seed)
        self.mean = rng.normal(-0.4, 0.3, (2, count))
        half = rng.normal(0, 0.12, (2, count, 8))
        self.covariance = half @ half.transpose(0, 2, 1) + 0.002 * np.eye(count)
        self.noise = np.array([0.003, 0.02])

    def encode(self, candidates: Candidates) -> Tensor:
        return torch.tensor([self.row_of[key] for key in candidates.keys()], dtype=torch.long)  # noqa: SIM118

    def at(self, points: Tensor) -> Prediction:
        return self.predict(points[0, :, 0].long())

    def predict(self, rows: Tensor) -> Prediction:
        covariance = torch.from_numpy(self.covariance)[:, rows][:, :, rows]
        mean = torch.from_numpy(self.mean)[:, rows]
        return Prediction(mean, covariance, torch.from_numpy(self.noise))

    def points(self, rows: Tensor, member: int) -> Tensor:
        return rows[:, None].double()

    def process(self, member: int) -> tuple[SingleTaskGP, float, float]:
        raise NotImplementedError


class Certain(MadeUp):
    """Members that know the values z (2 x candidates), a shift and a scale aside."""

    def __init__(self, candidates: Candidates, values: np.ndarray) -> None:
        super().__init__(candidates)
        self.mean = values
        self.shift, self.scale = float(values.mean()), float(values.std(ddof=1))
        self.places = torch.linspace(0, 1, len(self.row_of), dtype=torch.float64)[:, None]
        self.gps = [self._knowing((z - self.shift) / self.scale) for z in torch.from_numpy(values)]

    def _knowing(self, g: Tensor) -> SingleTaskGP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            noise = torch.full_like(g, 1e-6)
            gp = SingleTaskGP(self.places, g[:, None], noise[:, None], outcome_transform=None)
        gp.covar_module.lengthscale = 0.005
        return gp.eval()

    def points(self, rows: Tensor, member: int) -> Tensor:
        return self.places[rows]

    def at(self, points: Tensor) -> Prediction:
        return self.predict((points[0, :, 0] * (len(self.places) - 1)).round().long())

    def process(self, member: int) -> tuple[SingleTaskGP, float, float]:
        return self.gps[member], self.shift, self.scale


@pytest.fixture(scope="module")
def candidates(space: Space) -> Candidates:
    return sample(space, SpaceSettings(), COUNT, np.random.default_rng(0))


def observed(candidates: Candidates) -> Candidates:
    return candidates.select(np.arange(8))


def others(candidates: Candidates) -> Candidates:
    return candidates.select(np.arange(8, COUNT))


def improvement(weight: float, mean: float, variance: float, best: float) -> float:
    """E[max(w e^z - best, 0)], the formula."""
    s = math.sqrt(variance)
    d = (mean - math.log(best / weight)) / s
    return weight * math.exp(mean + variance / 2) * NORMAL.cdf(d + s) - best * NORMAL.cdf(d)


def by_hand(model: MadeUp, weight: np.ndarray, taken: list[int]) -> np.ndarray:
    """Improvement (n) over the first 8 and `taken`, which came out as each member expected.

    Averaged over members, each of which measures by its own best.
    """
    found = np.zeros(len(weight))
    for member in range(2):
        K = model.covariance[member]
        best = max((weight * np.exp(model.mean[member]))[[*range(8), *taken]])
        if taken:
            inverse = np.linalg.inv(K[np.ix_(taken, taken)] + 1e-6 * np.eye(len(taken)))
            K = K - K[:, taken] @ inverse @ K[taken]
        for row in set(range(len(weight))) - {*taken}:
            found[row] += improvement(weight[row], model.mean[member, row], K[row, row], best) / 2
    return found


def test_parents_are_the_best_by_the_model(space: Space, candidates: Candidates) -> None:
    objective, model = Objective(space, 0.9), MadeUp(candidates)
    students = observed(candidates)
    found = Improvement(model, model.encode, objective, students)
    value = objective.weight(students) * np.exp(model.mean[:, :8].mean(axis=0))
    order = np.argsort(-value).tolist()
    keys = students.keys()
    assert found.parents(3).keys() == [keys[row] for row in order[:3]]
    assert len(found.parents(99)) == 8


@pytest.mark.parametrize("kind", ["f", "accuracy"])
def test_scores_are_logarithms_of_the_mean_improvement(
    space: Space, candidates: Candidates, kind: str
) -> None:
    """Over the best student as the model sees it; more candidates than are scored at a time."""
    objective, model = Objective(space, 0.9, ObjectiveSettings(kind=kind)), MadeUp(candidates)
    found = Improvement(model, model.encode, objective, observed(candidates))
    weight = objective.weight(candidates)
    expected = by_hand(model, weight, [])
    many = joined([candidates] * 9)
    scores = found.scores(many)
    assert scores.shape == (9 * COUNT,)
    clear = expected > 1e-12
    assert clear.sum() > 10
    np.testing.assert_allclose(np.exp(scores[:COUNT])[clear], expected[clear], rtol=1e-6)
    np.testing.assert_allclose(scores[-COUNT:], scores[:COUNT], rtol=1e-9)
    assert found.scores(candidates.select(np.zeros(0, dtype=int))).shape == (0,)


def test_hopeless_candidates_are_ranked_by_what_is_expected_of_them(
    space: Space, candidates: Candidates
) -> None:
    model = MadeUp(candidates)
    model.mean[:, 8:] = np.linspace(-60, -50, COUNT - 8)
    objective = Objective(space, 0.9, ObjectiveSettings(kind="accuracy"))
    found = Improvement(model, model.encode, objective, observed(candidates))
    scores = found.scores(others(candidates))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()


def test_a_batch_believes_what_it_expects(space: Space, candidates: Candidates) -> None:
    """Kriging believer, its posterior by one inverse for all that was chosen."""
    objective, model = Objective(space, 0.9), MadeUp(candidates)
    acquisition = Improvement(model, model.encode, objective, observed(candidates))
    weight, taken = objective.weight(candidates), list[int]()
    nothing = space.candidates([])
    found = acquisition.pick(others(candidates), 6, nothing)
    for row in found:
        scores = by_hand(model, weight, taken)
        free = [i for i in range(8, COUNT) if i not in taken]
        assert row + 8 == max(free, key=lambda i: scores[i])
        taken.append(row + 8)
    alone = by_hand(model, weight, [])
    assert found != (np.argsort(-alone[8:])[:6]).tolist(), "belief made no difference"


class Families(MadeUp):
    """Members that agree: candidate i is of family i % 5, whose members are nearly the same."""

    def __init__(self, candidates: Candidates) -> None:
        super().__init__(candidates)
        family = np.arange(COUNT) % 5
        alike = 0.999 * (family[:, None] == family) + 0.001 * np.eye(COUNT)
        self.covariance = np.stack([0.04 * alike] * 2)
        self.mean = np.stack([-0.4 - 0.05 * family - 1e-4 * np.arange(COUNT)] * 2)


def test_a_batch_is_of_several_families(space: Space, candidates: Candidates) -> None:
    """By themselves the best five are all of one family, noise or not."""
    objective = Objective(space, 0.9, ObjectiveSettings(kind="accuracy"))
    model = Families(candidates)
    acquisition = Improvement(model, model.encode, objective, observed(candidates))
    pool = others(candidates)
    scores = acquisition.scores(pool)
    best = np.argsort(-scores)[:4] + 8
    assert {row % 5 for row in best} == {0}
    found = acquisition.pick(pool, 5, space.candidates([]))
    assert {(row + 8) % 5 for row in found} == {0, 1, 2, 3, 4}
    parents = acquisition.promising(pool, scores, 5)
    assert parents.keys() == pool.select(np.array(found)).keys()


@pytest.mark.parametrize("done", [1, 4])
def test_a_batch_in_parts_is_the_batch(space: Space, candidates: Candidates, done: int) -> None:
    objective, model = Objective(space, 0.9), MadeUp(candidates)
    acquisition = Improvement(model, model.encode, objective, observed(candidates))
    pool, nothing = others(candidates), space.candidates([])
    once = acquisition.pick(pool, 6, nothing)
    pending = pool.select(np.array(once[:done]))
    assert acquisition.pick(pool, 6 - done, pending) == once[done:]


@pytest.mark.parametrize("kind", ["f", "pareto"])
def test_no_more_than_there_are(space: Space, candidates: Candidates, kind: str) -> None:
    objective = Objective(space, 0.9, ObjectiveSettings(kind=kind))
    model = Certain(candidates, np.random.default_rng(0).normal(-0.4, 0.3, (2, COUNT)))
    students, pool = observed(candidates), candidates.select(np.arange(8, 13))
    acquisition = (
        Improvement(model, model.encode, objective, students)
        if kind == "f"
        else HypervolumeGain(model, model.encode, objective, students, 3)
    )
    assert sorted(acquisition.pick(pool, 9, space.candidates([]))) == [0, 1, 2, 3, 4]
    assert len(acquisition.pick(pool, 9, pool.select(np.array([1, 2])))) == 3
    assert acquisition.pick(pool, 2, pool) == []


def gains(objective: Objective, candidates: Candidates, z: np.ndarray) -> np.ndarray:
    return objective.gains(candidates, 0.9 * np.exp(z))


@pytest.mark.parametrize("measures", [("accuracy", "params"), ("accuracy", "macs", "bytes")])
def test_where_all_is_known_the_gain_is_that_of_the_hypervolume(
    space: Space, candidates: Candidates, measures: tuple[str, ...]
) -> None:
    """qLogNEHVI smooths the edges of the volume, by 1e-5 or so."""
    objective = Objective(space, 0.9, ObjectiveSettings(kind="pareto", measures=measures))
    # Small students are less accurate, or one of them would be better than all in every respect.
    noise = np.random.default_rng(2).normal(0, 0.15, COUNT)
    z = noise - 2 * objective.size(candidates) ** 4
    model = Certain(candidates, np.stack([z, z]))
    acquisition = HypervolumeGain(model, model.encode, objective, observed(candidates), seed=3)
    points = gains(objective, candidates, z)
    before = hypervolume(points[:8])
    exact = np.array([hypervolume(points[[*range(8), row]]) - before for row in range(8, COUNT)])
    scores = acquisition.scores(others(candidates))
    clear = exact > 0.002
    assert 5 < clear.sum() < COUNT - 8
    np.testing.assert_allclose(np.exp(scores[clear]), exact[clear], rtol=0.01)
    assert np.exp(scores[exact == 0]).max() < 1e-4

    taken = list(range(8))
    for row in acquisition.pick(others(candidates), 3, space.candidates([])):
        volumes = {i: hypervolume(points[[*taken, i]]) for i in range(8, COUNT)}
        assert volumes[row + 8] > max(volumes.values()) - 1e-4
        taken.append(row + 8)
    assert len(set(taken)) == 11


def test_pareto_parents_are_those_that_few_dominate(space: Space, candidates: Candidates) -> None:
    objective = Objective(space, 0.9, ObjectiveSettings(kind="pareto"))
    z = np.random.default_rng(2).normal(-0.4, 0.3, COUNT)
    model = Certain(candidates, np.stack([z, z]))
    found = HypervolumeGain(model, model.encode, objective, observed(candidates), seed=3)
    points = gains(objective, candidates, z)[:8]
    above = [
        sum((other >= one).all() and (other > one).any() for other in points) for one in points
    ]
    keys = candidates.keys()
    parents = [keys.index(key) for key in found.parents(8).keys()]  # noqa: SIM118
    counts = [above[row] for row in parents]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2


def test_members_take_turns(space: Space, candidates: Candidates) -> None:
    """Either member knows one candidate that it finds better than all others."""
    objective = Objective(space, 0.9, ObjectiveSettings(kind="pareto"))
    z = np.full((2, COUNT), -3.0)
    z[0, 20] = z[1, 25] = 0.0
    model = Certain(candidates, z)
    acquisition = HypervolumeGain(model, model.encode, objective, observed(candidates), seed=3)
    pool, nothing = others(candidates), space.candidates([])
    assert acquisition.pick(pool, 2, nothing) == [12, 17]
    assert acquisition.pick(pool, 1, pool.select(np.array([12]))) == [17]
    assert acquisition.pick(pool, 1, pool.select(np.array([3])))[0] == 17


def test_hypervolume_in_parts_and_without_the_global_generator(
    space: Space, candidates: Candidates
) -> None:
    objective = Objective(space, 0.9, ObjectiveSettings(kind="pareto"))
    values = np.random.default_rng(4).normal(-0.4, 0.3, (2, COUNT))
    model = Certain(candidates, values)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        acquisition = HypervolumeGain(model, model.encode, objective, observed(candidates), seed=3)
        found.append(acquisition.pick(others(candidates), 4, space.candidates([])))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    pending = others(candidates).select(np.array(found[0][:2]))
    assert acquisition.pick(others(candidates), 2, pending) == found[0][2:]
