"""Figures worked out by hand, and the rank correlation against SciPy's."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy.stats import spearmanr

from esnac.report.surrogate import SurrogateFigures, surrogate_figures


def told(step: int, f: float, **more: Any) -> dict[str, Any]:
    return {"state": "DONE", "step": step, "accuracy": 0.5, "f": f, **more}


def judged(expected: float, measured: float, spread: float = 0.25) -> dict[str, Any]:
    """A trial whose interval is `expected` +- `spread`."""
    interval = {"accuracy": expected, "low": expected - spread, "high": expected + spread}
    return told(0, 0.5, accuracy=measured, expected=interval)


def correlation(*pairs: tuple[float, float]) -> float | None:
    return surrogate_figures(judged(*pair) for pair in pairs).rank_correlation


@pytest.mark.parametrize("trials", [[], [{"state": "PROPOSED", "step": 0}], [told(0, 0.5)]])
def test_nothing_to_say(trials: list[dict[str, Any]]) -> None:
    assert surrogate_figures(trials) == SurrogateFigures(0, None, None, None)


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8."""
    assert correlation((0.5, 0.52), (0.6, 0.66), (0.7, 0.61), (0.8, 0.9)) == pytest.approx(0.8)
    assert correlation((0.5, 0.9), (0.6, 0.89), (0.8, 0.1)) == pytest.approx(-1)


def test_equal_values_share_their_mean_rank() -> None:
    """1 2.5 2.5 4 against 1 2 3 4: 4.5 / sqrt(4.5 * 5)."""
    rho = correlation((0.5, 0.1), (0.6, 0.2), (0.6, 0.3), (0.7, 0.4))
    assert rho == pytest.approx(4.5 / math.sqrt(22.5))


def test_rank_correlation_is_that_of_scipy() -> None:
    draw = random.Random(1)
    pairs = [(draw.randrange(20) / 20, draw.randrange(20) / 20) for _ in range(50)]
    assert correlation(*pairs) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.5, 0.5), (0.6, 0.6)],
        [(0.5, 0.5), (0.5, 0.6), (0.5, 0.7)],
        [(0.5, 0.5), (0.6, 0.5), (0.7, 0.5)],
    ],
    ids=["two", "constant expectation", "constant measurement"],
)
def test_no_rank_correlation(pairs: list[tuple[float, float]]) -> None:
    assert correlation(*pairs) is None


def test_coverage_counts_the_ends_of_the_interval() -> None:
    measured = [0.25, 0.5, 0.75, 0.76]  # of 0.5 +- 0.25
    assert surrogate_figures(judged(0.5, a) for a in measured).coverage == 0.75


def test_only_measured_expectations_are_judged() -> None:
    expected = {"accuracy": 0.5, "low": 0.4, "high": 0.6}
    under_way = {"state": "PROPOSED", "step": 2, "expected": expected}
    failed = {**under_way, "state": "FAILED", "reason": "no memory"}
    figures = surrogate_figures([told(0, 0.5), judged(0.5, 0.9), under_way, failed])
    assert (figures.trials, figures.coverage) == (3, 0.0)


def test_hit_rate_by_hand() -> None:
    """Bars 0.7 0.7 0.7 0.8: of steps 1, 3, 4 and 5 only 4 beats its own; 3 equals it."""
    trials = [told(0, 0.5), told(0, 0.7), told(1, 0.6)]
    trials += [{"state": "FAILED", "step": 2, "reason": "no memory"}]
    trials += [told(3, 0.7), told(3, 0.65), told(4, 0.1), told(4, 0.8), told(5, 0.75)]
    trials += [{"state": "PROPOSED", "step": 6}]
    assert surrogate_figures(trials).hit_rate == 0.25
    assert surrogate_figures(reversed(trials)).hit_rate == 0.25


def test_a_hit_is_by_what_the_search_maximises() -> None:
    """The accuracy rises in both steps while f falls; the hypervolume in one of two."""
    trials = [told(0, 0.9, accuracy=0.5), told(1, 0.8, accuracy=0.6), told(2, 0.7, accuracy=0.7)]
    assert surrogate_figures(trials).hit_rate == 0.0
    assert surrogate_figures(trials, "accuracy").hit_rate == 1.0
    assert surrogate_figures(trials, volumes=[0.4, 0.4, 0.5]).hit_rate == 0.5


def test_the_first_result_beats_nothing() -> None:
    failed = {"state": "FAILED", "step": 0, "reason": "no memory"}
    assert surrogate_figures([failed, told(1, 0.5)]).hit_rate is None
    assert surrogate_figures([failed, told(1, 0.5), told(2, 0.6)]).hit_rate == 1.0
