"""The loop around a model of accuracy, with a model that notes how it was used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esnac import Searcher
from esnac.graphs.cost import cost
from esnac.graphs.space import Candidates, Space
from esnac.search.engines.grey_box import GreyBoxProposer
from esnac.search.objectives import Objective
from esnac.search.proposer import History
from esnac.search.sampler import Source, sample
from esnac.search.settings import ObjectiveSettings, SearchSettings
from esnac.search.trial import Expectation, Outcome, Trial
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.ensemble import Prediction

SETTINGS = SearchSettings(
    batch=8,
    pool=400,
    spread=(0.5, 0.9),
    considered=20,
    parents=6,
    rounds=1,
    shortlist=20,
)


@dataclass
class Model:
    """Says that log accuracy is minus the first column of what it is shown, +- 0.2."""

    warm: bool = False
    afresh_every: int = 3
    size: int = 1
    #: Step, observations, sum of their values and seed of every fit, and whether all began anew.
    fits: list[tuple[int, int, float, int, bool]] = field(default_factory=list)

    def fit(self, x: Tensor, y: Tensor, seed: int, *, step: int = 0, afresh: bool = False) -> None:
        self.fits.append((step, len(y), round(float(y.sum()), 9), seed, afresh))

    def predict(self, x: Tensor) -> Prediction:
        covariance = 0.03 * torch.eye(len(x), dtype=torch.float64)
        return Prediction(-x[None, :, 0], covariance[None], torch.tensor([0.01]).double())

    def points(self, x: Tensor, member: int) -> Tensor:
        return x

    def at(self, points: Tensor) -> Prediction:
        return self.predict(points[0])

    def process(self, member: int) -> Any:
        raise NotImplementedError


def gone(candidates: Candidates) -> np.ndarray:
    """A tenth for each layer removed (N x 1)."""
    return 0.1 * candidates.removed.sum(axis=1, keepdims=True)


def engine(space: Space, model: Model, settings: SearchSettings = SETTINGS) -> GreyBoxProposer:
    source = Source(space, SpaceSettings())
    return GreyBoxProposer(source, Objective(space, 0.9), settings, model, gone, seed=3)


def observed(space: Space, count: int = 12) -> Candidates:
    return sample(space, SpaceSettings(), count, np.random.default_rng(0))


def grown(
    make_history: Callable[..., History], space: Space, step: int, fail: tuple[int, ...] = ()
) -> History:
    """After `step` steps of three, of which those in `fail` brought no result."""
    rows = np.arange(3 * step)
    rows = rows[~np.isin(rows // 3, fail)]
    candidates = observed(space, 3 * step).select(rows) if step else space.candidates([])
    accuracy = 0.3 + 0.01 * rows
    return make_history(space, candidates, accuracy, step=step, steps=rows // 3, number=3 * step)


def test_the_first_batch_is_spread_over_sizes(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Shares saved of 0.525, 0.575, ... 0.875, each met within a hundredth.

    Every other one keeps more than three quarters of its layers.
    """
    model = Model()
    found = engine(space, model).propose(8, grown(make_history, space, 0))
    size = Objective(space, 0.9).size(found.candidates)
    np.testing.assert_allclose(size, np.arange(0.525, 0.9, 0.05), atol=0.01)
    removed = found.candidates.removed[:, space.removable].mean(axis=1)
    assert (removed[::2] < 0.25).all()
    assert (removed[1::2] >= 0.25).all()
    assert found.expected == (None,) * 8
    assert model.fits == []


def test_the_model_proposes_once_half_a_batch_is_known(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Before, the first batch goes on at the sizes that are left: 0.675 and 0.725 after three."""
    model = Model()
    found = engine(space, model).propose(2, grown(make_history, space, 1))
    size = Objective(space, 0.9).size(found.candidates)
    np.testing.assert_allclose(size, [0.675, 0.725], atol=0.01)
    assert (model.fits, found.expected) == ([], (None, None))
    assert None not in engine(space, model).propose(2, grown(make_history, space, 2)).expected


def test_the_first_batch_is_spread_over_what_a_limit_leaves(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Shares saved from 0.8 on: the places lie 0.8 + 0.1 (k + 0.5) / 8."""
    teacher = cost(space.graph).params
    objective = Objective(
        space, 0.9, ObjectiveSettings(kind="accuracy", max_params=int(0.2 * teacher))
    )
    source = Source(space, SpaceSettings(), objective.allowed)
    proposer = GreyBoxProposer(source, objective, SETTINGS, Model(), gone, seed=3)
    found = proposer.propose(8, grown(make_history, space, 0)).candidates
    np.testing.assert_allclose(
        objective.size(found), 0.8 + 0.1 * (np.arange(8) + 0.5) / 8, atol=0.01
    )


def test_the_first_batch_of_a_warm_search_takes_what_it_expects_most_of(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Of every size those with few layers removed."""
    model = Model(warm=True)
    warm = engine(space, model).propose(8, grown(make_history, space, 0)).candidates
    cold = engine(space, Model()).propose(8, grown(make_history, space, 0)).candidates
    size = Objective(space, 0.9).size(warm)
    np.testing.assert_allclose(size, np.arange(0.525, 0.9, 0.05), atol=0.025)
    assert warm.removed.sum() < 0.6 * cold.removed.sum()
    assert [(fit[1], fit[4]) for fit in model.fits] == [(0, True)]


def test_expectations_are_those_of_the_model(
    space: Space, make_history: Callable[..., History]
) -> None:
    """Teacher's accuracy x exp(mean), and with 1.6449 x sqrt(0.03 + 0.01) either way; at most 1."""
    found = engine(space, Model()).propose(8, grown(make_history, space, 4))
    assert len(found.expected) == 8
    for expected, lost in zip(found.expected, gone(found.candidates)[:, 0], strict=True):
        assert expected is not None
        z = [-lost + way * 1.6449 * 0.2 for way in (0, -1, 1)]
        bounds = [min(1.0, 0.9 * math.exp(value)) for value in z]
        assert [expected.accuracy, expected.low, expected.high] == pytest.approx(bounds, abs=1e-6)
    few = [expected.high for expected in found.expected if expected is not None]
    assert max(few) == 1.0, "the bound was not met"


@pytest.mark.parametrize(("error", "widened"), [(4.0, 1), (0.05, -1), (None, 0)])
def test_intervals_learn_from_their_failures(
    space: Space, make_history: Callable[..., History], error: float | None, widened: int
) -> None:
    """Four steps that missed by `error` times the spread that they had stated."""
    history = grown(make_history, space, 4)
    spread = 0.1
    expected = [
        Expectation(a, a * math.exp(-1.6449 * spread), a * math.exp(1.6449 * spread))
        for a in history.accuracy * math.exp(-spread * (error or 0))
    ]
    known = make_history(
        space,
        history.observed,
        history.accuracy,
        step=4,
        steps=history.steps,
        expected=tuple(expected) if error else None,
    )
    (plain,), (found,) = (
        engine(space, Model()).propose(1, one).expected for one in (history, known)
    )
    assert plain is not None
    assert found is not None
    assert found.accuracy == plain.accuracy
    ratio = math.log(found.accuracy / found.low) / math.log(plain.accuracy / plain.low)
    assert np.sign(round(ratio - 1, 3)) == widened
    assert 0.5 < ratio < 5


def test_the_model_of_a_step_knows_the_steps_before_it(
    space: Space, make_history: Callable[..., History]
) -> None:
    """All begin anew at step 1, the first with results; one seed per step."""
    model = Model()
    proposer = engine(space, model)
    for step in range(8):
        proposer.propose(2, grown(make_history, space, step))
    found = [(step, count, afresh) for step, count, _, _, afresh in model.fits]
    assert found == [(step, 3 * step, step == 1) for step in range(1, 8)]
    assert len({fit[3] for fit in model.fits}) == 7
    accuracy = 0.3 + 0.01 * np.arange(6)
    assert model.fits[1][2] == pytest.approx(np.log(accuracy / 0.9).sum(), abs=1e-8)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("fail", [(), (0,), (0, 1), (3,)])
@pytest.mark.parametrize("step", range(1, 8))
def test_a_model_brought_up_to_a_step_is_the_one_that_grew(
    space: Space, make_history: Callable[..., History], step: int, fail: tuple[int, ...], warm: bool
) -> None:
    """In the steps in which each of its members began anew, both were given the same."""

    def since_anew(model: Model) -> list:
        last = max(i for i, fit in enumerate(model.fits) if fit[4])
        return [fit[:4] for fit in model.fits[last:]]

    if not len(grown(make_history, space, step, fail).observed):
        return  # nothing to learn from
    settings = replace(SETTINGS, batch=6)  # three observations are enough
    straight, late, back = Model(warm), Model(warm), Model(warm)
    proposer = engine(space, straight, settings)
    for number in range(step + 1):
        proposer.propose(1, grown(make_history, space, number, fail))
    engine(space, late, settings).propose(1, grown(make_history, space, step, fail))
    window = range(max(step - Model.afresh_every + 1, 0), step + 1)
    fits = [fit[:4] for fit in straight.fits if fit[0] in window and fit[1]]
    assert since_anew(late) == fits
    # Asked about the past, an engine that is further on answers as it did then.
    returning = engine(space, back, settings)
    returning.propose(1, grown(make_history, space, 8, fail))
    returning.propose(1, grown(make_history, space, step, fail))
    assert since_anew(back) == fits


def test_asking_again_in_a_step_does_not_train_again(
    space: Space, make_history: Callable[..., History]
) -> None:
    model = Model()
    proposer = engine(space, model)
    history = grown(make_history, space, 2)
    first, second = proposer.propose(2, history), proposer.propose(2, history)
    assert first.candidates.keys() == second.candidates.keys()
    assert len(model.fits) == 2


def test_students_under_evaluation_are_believed_and_not_proposed(
    space: Space, make_history: Callable[..., History]
) -> None:
    history = grown(make_history, space, 2)
    free = engine(space, Model()).propose(4, history).candidates
    waiting = free.select(np.array([0, 2]))
    later = make_history(
        space, history.observed, history.value, step=2, steps=history.steps, pending=waiting
    )
    found = engine(space, Model()).propose(4, later).candidates
    assert not set(found.keys()) & set(waiting.keys())
    assert set(free.keys()) - set(waiting.keys()) <= set(found.keys())


def test_candidates_climb(space: Space, make_history: Callable[..., History]) -> None:
    """By f = c (2 - c) exp(-0.1 per removed layer) all are above the best of 12 known ones.

    And above 99 of a hundred at random.
    """
    objective = Objective(space, 0.9)
    history = grown(make_history, space, 4)
    found = engine(space, Model()).propose(4, history).candidates

    def value(candidates: Candidates) -> np.ndarray:
        return objective.weight(candidates) * np.exp(-gone(candidates)[:, 0])

    drawn = sample(space, SpaceSettings(), 400, np.random.default_rng(7))
    assert value(found).min() > value(history.observed).max()
    assert value(found).min() > np.quantile(value(drawn), 0.99)


def accurate(trial: Trial) -> Outcome:
    lost = 0.3 * trial.ratio**2 + 0.1 * (3 in trial.moves.removed)
    return Outcome(accuracy=0.9 * (1 - lost), seconds=0.1)


@pytest.mark.parametrize("engine_name", ["esnac", "features"])
def test_expectations_come_near_the_outcomes(
    make_searcher: Callable[..., Searcher], searched: Callable[..., Any], engine_name: str
) -> None:
    """In the last of six steps: within a tenth, and most of them inside their intervals."""
    searcher = make_searcher(engine_name, steps=6, batch=5, first_steps=20, next_steps=6)
    searched(searcher, accurate)
    inside, missed = [], []
    for trial in searcher.trials[-10:]:
        found = searcher.outcomes[trial.number].accuracy
        assert trial.expected is not None
        assert found is not None
        assert 0 < trial.expected.low < trial.expected.accuracy < trial.expected.high <= 1
        inside.append(trial.expected.low <= found <= trial.expected.high)
        missed.append(abs(trial.expected.accuracy - found))
    assert np.mean(missed) < 0.1
    assert np.mean(inside) >= 0.6
    assert all(trial.expected is None for trial in searcher.trials[:5])
