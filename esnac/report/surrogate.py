"""How good the model behind a search was: what it expected against what was measured."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Row = Mapping[str, Any]

#: Fewer pairs than this have no rank correlation that says anything.
LEAST_PAIRS = 3


@dataclass(frozen=True)
class SurrogateFigures:
    """Shares are fractions; None where nothing is known yet, or ever for engines without a model.

    `trials` counts those with an expectation, in any state. Over the ones that are DONE and were
    not stopped early, `rank_correlation` is Spearman's of expected and measured validation
    accuracy, `coverage` the share measured within its central 90 % interval (nominal 0.90).
    `hit_rate` needs no model: the share of steps, of those with a result after the first, whose
    best student beats all earlier steps by what the search maximises; in a pareto search those
    after which the front dominates more.
    """

    trials: int = 0
    rank_correlation: float | None = None
    coverage: float | None = None
    hit_rate: float | None = None


def surrogate_figures(
    trials: Iterable[Row], merit: str = "f", volumes: Sequence[float] = ()
) -> SurrogateFigures:
    """`trials`: the journal's keys of each trial, those of its last state over the proposal's.

    `merit`: the key that the search maximises; `volumes`: instead of that the hypervolume after
    every step of a pareto search.
    """
    trials = list(trials)
    done = [trial for trial in trials if trial["state"] == "DONE"]
    whole = [trial for trial in done if trial.get("stopped_after") is None]
    pairs = [(trial["expected"], trial["accuracy"]) for trial in whole if trial.get("expected")]
    held = [expected["low"] <= measured <= expected["high"] for expected, measured in pairs]
    return SurrogateFigures(
        trials=sum(bool(trial.get("expected")) for trial in trials),
        rank_correlation=_rank_correlation(
            [expected["accuracy"] for expected, _ in pairs], [measured for _, measured in pairs]
        ),
        coverage=_share(held),
        hit_rate=_improved(volumes or _best_by_step(done, merit)),
    )


def _rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho; None for fewer than three pairs, or when either side is constant."""
    if len(x) < LEAST_PAIRS or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    # Not scipy.stats.spearmanr: its import takes longer than all the rest of `esnac stat`.
    return statistics.correlation(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [(bisect_left(order, v) + 1 + bisect_right(order, v)) / 2 for v in values]


def _best_by_step(done: Iterable[Row], merit: str) -> list[float]:
    best: dict[int, float] = {}
    for trial in done:
        best[trial["step"]] = max(trial[merit], best.get(trial["step"], trial[merit]))
    return [best[step] for step in sorted(best)]


def _improved(values: Sequence[float]) -> float | None:
    """The share of values, after the first, that are larger than all before them."""
    bars = accumulate(values, max)  # up to and with each
    return _share([value > bar for value, bar in zip(values[1:], bars, strict=False)])


def _share(facts: Sequence[bool]) -> float | None:
    return sum(facts) / len(facts) if facts else None
