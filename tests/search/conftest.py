"""A tiny network whose students have made-up accuracies, so that a search takes about a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from esnac import Searcher
from esnac.executors import SerialExecutor
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Candidates, Space
from esnac.graphs.trace import trace
from esnac.search.feed import StepwiseFeed
from esnac.search.loop import search_loop
from esnac.search.proposer import History
from esnac.search.settings import SearchSettings
from esnac.search.trial import Expectation, Outcome, Trial
from esnac.surrogate.settings import EnsembleSettings, SurrogateSettings

Rows = list[dict[str, Any]]

#: Small, and named one by one: the defaults may be tuned.
SEARCH = {
    "steps": 4,
    "batch": 3,
    "pool": 40,
    "spread": (0.5, 0.9),
    "considered": 20,
    "parents": 6,
    "rounds": 1,
    "shortlist": 20,
    "population": 4,
    "tournament": 2,
}
#: Afresh at step 3, so that step 2 goes on from step 1.
MODEL = {
    "members": 2,
    "hidden": 8,
    "first_steps": 4,
    "next_steps": 2,
    "afresh_every": 3,
    "part": 0.8,
    "least_part": 4,
}
KERNEL = SurrogateSettings(hidden=4, layers=1, steps=3)


def chain(*channels: int) -> ArchGraph:
    """Blocks of convolution, norm and ReLU on 8x8 images of one channel; three classes."""
    layers: list[nn.Module] = []
    for read, made in zip((1, *channels), channels, strict=False):
        layers += [nn.Conv2d(read, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 3)]
    return trace(nn.Sequential(*layers, *head), (1, 8, 8))


@pytest.fixture(scope="session")
def graph() -> ArchGraph:
    return chain(8, 8, 8)


@pytest.fixture(scope="session")
def other_graph() -> ArchGraph:
    """Of another depth and other widths."""
    return chain(6, 6, 12, 12)


@pytest.fixture(scope="session")
def short_graph() -> ArchGraph:
    """Four layers can be removed: a norm and a ReLU twice, and no convolution."""
    return chain(4, 6)


@pytest.fixture(scope="session")
def deep_graph() -> ArchGraph:
    return chain(16, 16, 16, 16, 16, 16)


@pytest.fixture(scope="session")
def space(graph: ArchGraph) -> Space:
    return Space(graph, tie="dependency")


@pytest.fixture(scope="session")
def make_searcher(graph: ArchGraph) -> Callable[..., Searcher]:
    """make_searcher(engine, seed): of the tiny network, with other settings where they are named.

    Names of `SearchSettings`, of `EnsembleSettings`, or arguments of `Searcher`.
    """

    def make(engine: str, seed: int = 1, teacher: ArchGraph = graph, **changed: Any) -> Searcher:
        search = {name: changed.pop(name, value) for name, value in SEARCH.items()}
        model = {name: changed.pop(name, value) for name, value in MODEL.items()}
        return Searcher(
            teacher,
            teacher_accuracy=0.9,
            settings=SearchSettings(engine=engine, **search),
            model=EnsembleSettings(**model),
            surrogate=KERNEL,
            seed=seed,
            **changed,
        )

    return make


@pytest.fixture(scope="session")
def made_up() -> Callable[[Trial], Outcome]:
    """An accuracy without training: fewer parameters and removed convolutions cost some."""

    def evaluate(trial: Trial) -> Outcome:
        lost = 0.3 * trial.ratio**2 + 0.1 * (3 in trial.moves.removed)
        return Outcome(accuracy=0.9 * (1 - lost), seconds=0.1)

    return evaluate


@pytest.fixture(scope="session")
def searched(made_up: Callable[[Trial], Outcome]) -> Callable[..., Rows]:
    """searched(searcher): all rows of the journal of a search to its end."""

    def search(
        searcher: Searcher, evaluate: Callable[[Trial], Outcome] = made_up, before: Any = ()
    ) -> Rows:
        rows: Rows = list(before)
        search_loop(StepwiseFeed(searcher, rows.extend), SerialExecutor(evaluate))
        return rows

    return search


@pytest.fixture(scope="session")
def make_history() -> Callable[..., History]:
    """make_history(space, observed, value): what an engine is asked with, at the end of step 0."""

    def make(
        space: Space,
        observed: Candidates,
        value: np.ndarray,
        *,
        step: int = 1,
        steps: np.ndarray | None = None,
        since: np.ndarray | None = None,
        number: int | None = None,
        accuracy: np.ndarray | None = None,
        expected: tuple[Expectation | None, ...] | None = None,
        pending: Candidates | None = None,
        seen: set[bytes] | None = None,
    ) -> History:
        pending = space.candidates([]) if pending is None else pending
        known = {*space.identity().keys(), *observed.keys(), *pending.keys()}
        steps = np.zeros(len(observed), dtype=np.int64) if steps is None else steps
        return History(
            step=step,
            number=len(observed) + len(pending) if number is None else number,
            observed=observed,
            steps=steps,
            since=steps + 1 if since is None else since,
            accuracy=value if accuracy is None else accuracy,
            value=value,
            expected=(None,) * len(observed) if expected is None else expected,
            pending=pending,
            seen=known if seen is None else seen,
        )

    return make
