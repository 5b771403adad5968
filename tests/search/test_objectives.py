"""Objectives of the tiny network: 1,323 parameters, 78,360 MACs, three classes.

Convolutions (9 + 1) 8 = 80 and twice (72 + 1) 8 = 584, three norms of 16, a linear layer of 27;
MACs 64 x 72, twice 64 x 576, and 24. The smallest student has one channel, a first convolution of
10 parameters and a linear layer of 6.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from esnac.errors import SettingsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Candidates, Space
from esnac.objective import reward
from esnac.search.objectives import Objective, dominators, hypervolume, spread_of_front
from esnac.search.sampler import sample
from esnac.search.settings import ObjectiveSettings, SearchSettings
from esnac.search_spaces import SpaceSettings

TEACHER, MACS, BYTES = 1323, 78_360, 4 * 1323 + 3 * (8 * 8 + 8)


def seconds(space: Space, candidates: Candidates) -> np.ndarray:
    """A made-up latency: a microsecond per channel kept."""
    return 1e-6 * candidates.kept[:, ~space.frozen].sum(axis=1)


def objective(space: Space, **settings: object) -> Objective:
    return Objective(space, 0.9, ObjectiveSettings(**settings), latency=seconds)


def drawn(space: Space, count: int = 50) -> Candidates:
    return sample(space, SpaceSettings(), count, np.random.default_rng(0))


def test_f_is_the_published_reward(space: Space) -> None:
    candidates = drawn(space)
    accuracy = np.linspace(0, 1, 50)
    found = objective(space)
    c = found.size(candidates)
    assert c[0] == 1 - found.measured(candidates)["params"][0] / TEACHER
    expected = [reward(ratio, a, 0.9) for ratio, a in zip(c, accuracy, strict=True)]
    np.testing.assert_allclose(found.value(candidates, accuracy), expected, rtol=1e-12)
    assert found.value(space.identity(), np.array([0.9])) == 0
    composed = found.weight(candidates) * np.exp(found.log_ratio(accuracy))
    np.testing.assert_allclose(composed[20:], expected[20:], rtol=1e-12)


def test_accuracy_alone(space: Space) -> None:
    found = objective(space, kind="accuracy")
    value = found.value(drawn(space, 3), np.array([0.45, 0.9, 0.0]))
    np.testing.assert_allclose(value, [0.5, 1, 0])


def test_below_half_of_guessing_accuracies_mean_the_same(space: Space) -> None:
    """Three classes: half of guessing is 1/6."""
    found = objective(space).log_ratio(np.array([0.0, 0.1, 1 / 6, 0.9]))
    floor = math.log(1 / 6 / 0.9)
    np.testing.assert_allclose(found, [floor, floor, floor, 0], atol=1e-12)


def test_what_is_computed_of_the_teacher(space: Space) -> None:
    measures = ("accuracy", "bytes", "latency")
    found = objective(space, kind="pareto", measures=measures)
    measured = {name: float(value[0]) for name, value in found.measured(space.identity()).items()}
    teacher = {"params": TEACHER, "macs": MACS, "bytes": BYTES, "latency": pytest.approx(0.024)}
    assert measured == teacher
    np.testing.assert_allclose(found.known(space.identity()), [[0, 0]])


def test_gains_are_accuracy_over_the_teacher_s_and_shares_saved(space: Space) -> None:
    candidate = space.identity()
    candidate.kept[:, ~space.frozen] = 4
    # Convolutions (9 + 1) 4 and twice (36 + 1) 4, three norms of 8, a linear layer of 15.
    params = 40 + 2 * 148 + 3 * 8 + 15
    macs = 64 * (36 + 2 * 144) + 12
    found = objective(space, kind="pareto", measures=("params", "accuracy", "macs"))
    gains = found.gains(candidate, np.array([0.45]))
    np.testing.assert_allclose(gains, [[0.5, 1 - params / TEACHER, 1 - macs / MACS]])
    order = objective(space, kind="pareto", measures=("accuracy", "latency"))
    np.testing.assert_allclose(order.gains(candidate, np.array([0.9])), [[1, 0.5]])


def test_the_value_in_a_pareto_search_counts_who_dominates(space: Space) -> None:
    """Of equal size the more accurate one dominates."""
    four = space.candidates([space.moves(space.identity(), 0)] * 4)
    found = objective(space, kind="pareto")
    value = found.value(four, np.array([0.5, 0.9, 0.7, 0.9]))
    assert value.tolist() == [-3, 0, -2, 0]


@pytest.mark.parametrize(
    ("limit", "smallest"),
    [
        ({"max_params": 15}, "16 parameters"),
        ({"max_macs": 578}, "579 MACs"),
        ({"max_bytes": 63}, "64 bytes"),
        ({"max_latency": 0.002}, "0.003 ms"),
        ({"max_params": 500, "max_macs": 100}, "579 MACs"),
    ],
)
def test_a_limit_out_of_reach_says_what_the_smallest_student_has(
    graph: ArchGraph, limit: dict[str, float], smallest: str
) -> None:
    with pytest.raises(SettingsError, match=f"{list(limit)[-1]}.*smallest .* has {smallest}"):
        objective(Space(graph), **limit)


def test_the_smallest_student_is_allowed(graph: ArchGraph) -> None:
    space = Space(graph)
    found = objective(space, max_params=16, max_macs=579, max_bytes=64)
    assert found.limited
    every = np.zeros((1, len(graph)), dtype=bool)
    every[0, space.removable] = True
    least = space.kept_at(np.zeros((1, len(space.groups))))
    smallest = space.resolve(every, least, space.identity().skips)
    assert found.allowed(smallest).tolist() == [True]
    assert not found.allowed(space.identity()).any()


def test_a_minimum_width_moves_the_smallest_student(graph: ArchGraph) -> None:
    """Four channels: a convolution of 40 and a linear layer of 15."""
    with pytest.raises(SettingsError, match="has 55 parameters"):
        objective(Space(graph, minimum=4), max_params=54)


def test_all_limits_hold_at_once(space: Space) -> None:
    candidates = drawn(space, 200)
    found = objective(space, max_params=600, max_macs=30_000, max_bytes=2500, max_latency=0.014)
    limits = {"params": 600, "macs": 30_000, "bytes": 2500, "latency": 0.014}
    measured = found.measured(candidates)
    each = {name: measured[name] <= limit for name, limit in limits.items()}
    expected = np.logical_and.reduce(list(each.values()))
    assert found.allowed(candidates).tolist() == expected.tolist()
    assert 0 < expected.sum() < 200
    assert len({tuple(good) for good in each.values()}) == 4, "each limit says something else"


def test_without_limits_nothing_but_the_teacher_is_measured(space: Space) -> None:
    """Latency is measured on the device, so what is not asked for costs time."""
    measured = []

    def counted(space: Space, candidates: Candidates) -> np.ndarray:
        measured.append(len(candidates))
        return seconds(space, candidates)

    settings = ObjectiveSettings(kind="pareto", measures=("accuracy", "latency"))
    Objective(space, 0.9, settings, latency=counted)
    assert measured == [1]


@pytest.mark.parametrize(
    "settings", [{"max_latency": 1.0}, {"kind": "pareto", "measures": ("accuracy", "latency")}]
)
def test_latency_without_a_measurement_is_an_error(
    space: Space, settings: dict[str, object]
) -> None:
    with pytest.raises(SettingsError, match="Latency is measured"):
        Objective(space, 0.9, ObjectiveSettings(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_params": 0},
        {"max_latency": -1.0},
        {"kind": "pareto", "measures": ("params", "macs")},
        {"kind": "pareto", "measures": ("accuracy",)},
        {"kind": "pareto", "measures": ("accuracy", "params", "macs", "bytes")},
        {"kind": "pareto", "measures": ("accuracy", "params", "params")},
        {"kind": "pareto", "measures": ("accuracy", "size")},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"positive|accuracy and one or two of"):
        ObjectiveSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"pool": 3}, "pool must be at least 4; got 3"),
        ({"rounds": -1}, "rounds must be at least 0; got -1"),
        ({"tournament": 0}, "tournament must be at least 1; got 0"),
        ({"spread": (0.9, 0.6)}, "spread must be two rising shares"),
        ({"bagging": 0.0}, r"bagging must be in \(0, 1\]; got 0.0"),
    ],
)
def test_searches_that_cannot_be_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(SettingsError, match=rf"search\.{expected}"):
        SearchSettings(**settings)


def test_dominators() -> None:
    """A point is dominated by those that are nowhere worse and somewhere better."""
    gains = np.array([[3, 1], [2, 2], [1, 1], [2, 2], [1, 3], [0, 3]], dtype=float)
    assert dominators(gains).tolist() == [0, 0, 4, 0, 0, 1]
    assert dominators(np.zeros((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([], 0),
        ([[2, 3]], 6),
        ([[3, 1], [2, 2], [1, 3]], 6),  # a staircase of 3 + 2 + 1 unit squares
        ([[3, 1], [2, 2], [1, 3], [1, 1], [2, 2]], 6),
        ([[2, 3], [5, 0], [-1, 9]], 6),  # without extent, or beyond the reference
        ([[1, 2, 3], [3, 2, 1]], 10),  # 6 + 6, less the 1 x 2 x 1 in common
        ([[-1, -1]], 0),
    ],
)
def test_hypervolume(points: list[list[float]], volume: float) -> None:
    gains = np.array(points, dtype=float).reshape(len(points), -1 if points else 2)
    assert hypervolume(gains) == pytest.approx(volume)


def test_the_spread_of_a_front_dominates_most() -> None:
    """Areas alone: 4, 7, 6, 1; with (1, 7): (4, 1) adds 3, (3, 2) adds 4."""
    gains = np.array([[4, 1], [1, 7], [3, 2], [1, 1], [2, 0.5]])
    assert spread_of_front(gains, 1) == [1]
    assert spread_of_front(gains, 3) == [1, 2, 0]
    assert spread_of_front(gains, 4)[:3] == [1, 2, 0], "the dominated come last"
    assert sorted(spread_of_front(gains, 9)) == [0, 1, 2, 3, 4]
    assert spread_of_front(np.zeros((0, 2)), 3) == []
