"""A tiny network whose students have made-up accuracies, so that a search takes about a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esnac import Searcher
from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.executors import SerialExecutor
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Candidates, Space
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.search.evaluation import Evaluator
from esnac.search.feed import StepwiseFeed
from esnac.search.loop import search_loop
from esnac.search.proposer import History
from esnac.search.sampler import sample
from esnac.search.settings import SearchSettings
from esnac.search.trial import Expectation, Outcome, Trial
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.settings import EnsembleSettings, SurrogateSettings
from esnac.training import TrainingSettings

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
    "batch": 5,
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
            accuracy_at=lambda step: value if accuracy is None else accuracy,
            value=value,
            expected=(None,) * len(observed) if expected is None else expected,
            pending=pending,
            seen=known if seen is None else seen,
        )

    return make


#: Of the evaluations that are really trained, two epochs on 150 images.
SEED = 3
TRAINING = TrainingSettings(
    epochs=2,
    batch_size=32,
    optimizer="adam",
    learning_rate=3e-3,
    precision="float32",
    distillation="logit_mse",
    label_weight=0.0,
)


@pytest.fixture(scope="session")
def bars(make_bars: Callable[..., DataSet]) -> DataSet:
    return make_bars(150, 100)


@pytest.fixture(scope="session")
def bars_teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            layer
            for made in ((1, 8), (8, 8), (8, 8))
            for layer in (nn.Conv2d(*made, 3, padding=1), nn.BatchNorm2d(made[1]), nn.ReLU())
        ]
        head = nn.Linear(8 * 64, 3)
        nn.init.normal_(head.weight, std=0.5)  # logits that are worth imitating
        return nn.Sequential(*layers, nn.Flatten(), head).eval()


@pytest.fixture(scope="session")
def make_evaluator(
    bars_teacher: nn.Module,
    bars: DataSet,
    device: torch.device,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Evaluator]:
    """make_evaluator(training={...}): with other settings and fields where they are named.

    Each leaves its students in a folder of its own.
    """
    graph = trace(bars_teacher, bars.input_shape)
    weights = teacher_weights(graph, bars_teacher.state_dict())
    network = StudentNetwork(graph, weights).to(device).eval()
    evaluator = Evaluator(
        space=Space(graph),
        weights=weights,
        data=bars,
        targets=TeacherTargets(network, bars, derive_seed(SEED, "augmentation"), device),
        training=TRAINING,
        selection="leading",
        seed=SEED,
        device=device,
        folder=Path,
    )

    def make(training: Mapping[str, Any] = MappingProxyType({}), **changed: Any) -> Evaluator:
        root = tmp_path_factory.mktemp("trials")
        changed = {"folder": lambda number: root / f"{number:04d}"} | changed
        return replace(evaluator, training=replace(TRAINING, **training), **changed)

    return make


@pytest.fixture(scope="session")
def make_trials() -> Callable[..., list[Trial]]:
    """make_trials(space): the first of a search, each another student."""

    def make(space: Space, count: int = 3) -> list[Trial]:
        drawn = sample(space, SpaceSettings(shrink_limit=0.7), count, np.random.default_rng(1))
        moves = [space.moves(drawn, row) for row in range(count)]
        spent = [cost(space.apply(one)) for one in moves]
        return [
            Trial(number, 0, one, costs.params, costs.macs, 0.5)
            for number, (one, costs) in enumerate(zip(moves, spent, strict=True))
        ]

    return make
