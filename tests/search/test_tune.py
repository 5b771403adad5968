"""The search on Ray Tune: whose trials run where, and what happens when a worker or a node is lost.

All tests that start Ray share one cluster, whose head has a single processor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.cluster_utils import Cluster as Nodes
from torch import nn

import esnac
from esnac import Searcher
from esnac.cluster import ClusterSettings, connected
from esnac.data import DataSet, DataSettings, load
from esnac.distillation.losses import make_loss
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork
from esnac.search.bundle import Bundle
from esnac.search.earlier import space_of
from esnac.search.evaluation import Evaluation, Evaluator
from esnac.search.feed import StreamingFeed, restore
from esnac.search.settings import SearchSettings
from esnac.search.trial import Trial
from esnac.search.tune import (
    EmbeddingSearch,
    _RunSearch,
    _Started,
    asha,
    comparable,
    tune_search,
)
from esnac.search_spaces import SpaceSettings
from esnac.training import Training, TrainingSettings, accuracy, fit

Rows = list[dict[str, Any]]

SPACE = SpaceSettings(shrink_limit=0.7)

# Workers do not see this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head of one processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "include_dashboard": False}
        nodes = Nodes(initialize_head=True, head_node_args=head)
        try:
            ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


@dataclass(frozen=True)
class Marks:
    """A line for each attempt at a trial, in files that all processes of this machine see."""

    folder: Path

    def note(self, number: int) -> int:
        """How many attempts there were before."""
        node = ray.get_runtime_context().get_node_id()
        with (self.folder / str(number)).open("a+") as file:
            file.write(f"{os.getpid()} {node}\n")
            file.flush()
            file.seek(0)
            return len(file.readlines()) - 1

    def pids(self, number: int) -> list[str]:
        return [line.split()[0] for line in self._lines(number)]

    def nodes(self, number: int) -> list[str]:
        return [line.split()[1] for line in self._lines(number)]

    def _lines(self, number: int) -> list[str]:
        return (self.folder / str(number)).read_text().splitlines()


@dataclass(frozen=True)
class Troubled(Evaluator):
    """Does `trouble(marks, trial number, earlier attempts)` before a training."""

    trouble: Callable[[Marks, int, int], None]
    marks: Marks

    def training_of(self, trial: Trial) -> tuple[Training, StudentNetwork]:
        self.trouble(self.marks, trial.number, self.marks.note(trial.number))
        return super().training_of(trial)


@dataclass(frozen=True)
class TroubledBundle(Bundle):
    trouble: Callable[[Marks, int, int], None]
    marks: Marks

    def evaluator(self, device: torch.device, folder: Callable[[int], Path]) -> Evaluator:
        plain = super().evaluator(device, folder)
        return Troubled(**vars(plain), trouble=self.trouble, marks=self.marks)


@pytest.fixture
def run(
    nodes: Nodes, make_evaluator: Callable[..., Evaluator], tmp_path: Path
) -> Callable[..., tuple[Rows, Searcher, Evaluator]]:
    """run(trials, trouble, ...): an asynchronous search on all workers of the cluster."""

    def run(
        trials: int,
        trouble: Callable[[Marks, int, int], None],
        *,
        cpus: float = 0.5,
        training: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[Rows, Searcher, Evaluator]:
        plain = make_evaluator(training or {})
        graph = plain.space.graph
        evaluator = make_evaluator(training or {}, space=space_of(graph, SPACE))
        settings = SearchSettings(engine="random", steps=trials, batch=1)
        searcher = Searcher(graph, settings=settings, space=SPACE)
        epochs = range(evaluator.training.epochs)
        bundle = Bundle.of(evaluator, SPACE, {e: evaluator.targets.epoch(e) for e in epochs})
        given = {field.name: getattr(bundle, field.name) for field in fields(bundle)}
        rows: Rows = []
        with connected(ClusterSettings("ray", cpus_per_worker=cpus)) as cluster:
            feed = StreamingFeed(searcher, rows.extend, workers=cluster.workers)
            troubled = TroubledBundle(**given, trouble=trouble, marks=Marks(tmp_path))
            tune_search(searcher, feed, troubled, cluster, evaluator.folder, **more)
            feed.close()
        return rows, searcher, evaluator

    return run


def states(rows: Rows) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault(row["trial"], []).append(row["state"])
    return found


def none(marks: Marks, number: int, attempts: int) -> None:
    """No trouble."""


def deadly(marks: Marks, number: int, attempts: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4:
        raise MemoryError("no room\nfor this one")


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_fails_alone_once_it_is_not_tried_again(
    run: Callable[..., tuple[Rows, Searcher, Evaluator]], tmp_path: Path
) -> None:
    """As trial 2 does; trial 4 fails without harm to its worker."""
    rows, searcher, evaluator = run(8, deadly, retries=0)
    expected = {number: ["PROPOSED", "DONE"] for number in range(8)}
    assert states(rows) == expected | {n: ["PROPOSED", "FAILED"] for n in (2, 4)}
    pids = [Marks(tmp_path).pids(number) for number in range(8)]
    assert [len(attempts) for attempts in pids] == [1] * 8
    assert len({pid for attempts in pids for pid in attempts}) <= 3, "workers are used again"
    reasons = {row["trial"]: row["reason"] for row in rows if row["state"] == "FAILED"}
    assert "died" in reasons[2]
    assert reasons[4] == "MemoryError: no room"
    check_students(rows, evaluator)


def check_students(rows: Rows, evaluator: Evaluator) -> None:
    """On disk lies what the journal says, and nothing of other trials."""
    data = evaluator.data
    whole = [row for row in rows if row["state"] == "DONE" and "stopped_after" not in row]
    there = {int(path.name) for path in evaluator.folder(0).parent.iterdir()}
    assert there == {row["trial"] for row in whole}
    for row in whole:
        student = students.load(evaluator.folder(row["trial"]))
        assert accuracy(student, data.validation, data) == row["accuracy"]
        assert cost(student.graph).params == row["params"]


def unlucky(marks: Marks, number: int, attempts: int) -> None:
    if number == 1 and attempts == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_students_that_are_still_learning_are_compared_by_less_than_their_accuracy() -> None:
    assert comparable(0.9, 0.8, 1.0) == pytest.approx(0.72)
    assert comparable(0.5, 0.25, 0.5) == pytest.approx(0.25)
    assert comparable(0.9, 0.0, 0.1) == 0.0
    small, large = (0.99, 0.6), (0.88, 0.88)
    assert comparable(*small, 0.2) > comparable(*large, 0.2)
    assert comparable(*small, 1.0) < comparable(*large, 1.0)


@pytest.mark.slow
def test_what_was_stopped_early_has_a_curve_and_no_student(
    run: Callable[..., tuple[Rows, Searcher, Evaluator]],
    make_evaluator: Callable[..., Evaluator],
    tmp_path: Path,
) -> None:
    """Of those that come to epoch 1, 2, 4 or 8 of 10 the better half goes on.

    A worker is killed in between, which costs only another attempt at its trial.
    """
    rows, searcher, evaluator = run(9, unlucky, training={"epochs": 10}, scheduler=asha(10))
    assert states(rows) == {number: ["PROPOSED", "DONE"] for number in range(9)}
    check_students(rows, evaluator)
    assert [len(Marks(tmp_path).pids(number)) for number in range(9)] == [1, 2, *[1] * 7]
    done = {row["trial"]: row for row in rows if row["state"] == "DONE"}
    stopped = {number for number in done if "stopped_after" in done[number]}
    assert 0 < len(stopped) < 9
    assert {trial.number for trial in searcher.best(9)} == done.keys() - stopped
    here = make_evaluator({"epochs": 10}, space=evaluator.space)
    for number, row in done.items():
        epochs = row.get("stopped_after", 10)
        assert epochs in (1, 2, 4, 8, 10)
        assert row["accuracy"] == (row["curve"][-1] if number in stopped else max(row["curve"]))
        evaluation = Evaluation(here, searcher.trials[number])
        assert row["curve"] == [accuracies(evaluation) for _ in range(epochs)]
    again = Searcher(searcher.graph, settings=searcher.settings, space=SPACE)
    restore(again, json.loads(json.dumps(rows)))
    assert again.outcomes == searcher.outcomes


def accuracies(evaluation: Evaluation) -> float:
    """After one more epoch."""
    evaluation.advance()
    return evaluation.accuracy


def held_up(marks: Marks, number: int, attempts: int) -> None:
    """The first trial away from the head never ends; the last ones wait for a node that joins."""
    first = (marks.folder / "first").read_text().split()
    here = ray.get_runtime_context().get_node_id()
    if here not in first:
        (marks.folder / "joined").touch()
    elif here != first[0] and create(marks.folder / "held", here):
        time.sleep(600)
    end = time.monotonic() + 200
    while number >= 4 and not (marks.folder / "joined").exists():
        assert time.monotonic() < end, "no node has joined"
        time.sleep(0.05)


def create(path: Path, text: str) -> bool:
    """Whether this process is the first to do so; nobody reads half of it."""
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text(text)
    try:
        path.hardlink_to(own)
    except FileExistsError:
        return False
    return True


@pytest.mark.slow
def test_a_node_may_be_lost_and_another_may_join(
    nodes: Nodes, run: Callable[..., tuple[Rows, Searcher, Evaluator]], tmp_path: Path
) -> None:
    """Three nodes of one processor each; one is lost while a trial runs there."""
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    first = [ray.get_runtime_context().get_node_id(), *(node.node_id for node in others)]
    (tmp_path / "first").write_text(" ".join(first))
    held = tmp_path / "held"
    with ThreadPoolExecutor(1) as threads:
        search = threads.submit(run, 8, held_up, cpus=1.0)
        while not (held.exists() or search.done()):
            time.sleep(0.1)
        lost = held.read_text()
        nodes.remove_node(others.pop(first.index(lost) - 1), allow_graceful=False)
        others.append(nodes.add_node(num_cpus=1))
        rows, searcher, evaluator = search.result()
    for node in others:
        nodes.remove_node(node)
    assert states(rows) == {number: ["PROPOSED", "DONE"] for number in range(8)}
    check_students(rows, evaluator)
    visited = [Marks(tmp_path).nodes(number) for number in range(8)]
    (again,) = [where for where in visited if len(where) > 1]
    assert again[0] == lost != again[1]
    assert len(again) == 2
    assert sum(where.count(lost) for where in visited) == 1
    assert {node for where in visited for node in where} - set(first), "the new one worked, too"


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10),
        )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits", None, DataSettings(limit=400))


@pytest.fixture(scope="module")
def teacher(digits: DataSet) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Tiny()
    training = TrainingSettings(epochs=5, batch_size=32, learning_rate=0.05)
    fit(
        module,
        digits,
        training,
        loss=make_loss(training),
        seed=1,
        augmentation_seed=1,
        device=torch.device("cpu"),
    )
    return module


SETTINGS = {
    "search": {
        "steps": 3, "batch": 3, "mode": "synchronous", "engine": "evolution", "population": 4,
        "tournament": 2,
    },
    "evaluation": {"epochs": 2},
    "finish": {"finalists": 2, "training": {"epochs": 2}},
}  # fmt: skip


def journal(path: Path) -> Rows:
    """Without what differs between two equal runs."""
    rows = [json.loads(line) for line in (path / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows]


@pytest.mark.slow
def test_a_synchronous_journal_is_the_same_in_process_and_on_any_number_of_workers(
    nodes: Nodes, teacher: nn.Module, digits: DataSet, tmp_path: Path
) -> None:
    found = {}
    for name, cpus in (("serial", None), ("one", 1.0), ("two", 0.5)):
        where = None if cpus is None else ClusterSettings("ray", cpus_per_worker=cpus)
        result = esnac.run_search(
            teacher, digits, SETTINGS, runs=tmp_path, name=name, device="cpu", cluster=where
        )
        weights = sorted(result.path.glob("*/*/weights.safetensors"))
        files = {path.relative_to(result.path): path.read_bytes() for path in weights}
        found[name] = journal(result.path), files
    rows, files = found["serial"]
    assert [row["event"] for row in rows].count("stage") == 2
    assert len(files) == 9 + 2
    assert found["one"] == found["serial"]
    assert found["two"] == found["serial"]


def made_up(graph: ArchGraph) -> float:
    return 1 / (1 + cost(graph).params / 1000)


def stranger(config: dict[str, Any]) -> None:
    """A trainable that knows an architecture and no evaluator."""
    if config["trial"]["trial"] == 2:
        raise ValueError("this one cannot be trained")
    graph = ArchGraph.from_json(config["architecture"])
    StudentNetwork(graph)(torch.zeros(1, *graph.input_shape))
    tune.report({"right": made_up(graph), "other": 0.5})


@pytest.mark.slow
def test_a_strangers_tuner_proposes_as_the_searcher_says(
    nodes: Nodes, make_searcher: Callable[..., Searcher], tmp_path: Path
) -> None:
    searcher = make_searcher("evolution", batch=1)
    tuner = tune.Tuner(
        tune.with_resources(stranger, {"CPU": 0.5}),
        tune_config=tune.TuneConfig(
            search_alg=EmbeddingSearch(searcher, workers=2, metric="right"),
            metric="right",
            mode="max",
            num_samples=5,
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert (len(results), len(results.errors)) == (4, 1), "four are all that it asks for"
    assert searcher.outcomes.keys() == {0, 1, 2, 3}
    for number, outcome in searcher.outcomes.items():
        if number == 2:
            assert outcome.state == "FAILED"
        else:
            assert outcome.accuracy == made_up(searcher.student(searcher.trials[number]))
    best = searcher.student(
        max(searcher.best(3), key=lambda t: searcher.outcomes[t.number].accuracy)
    )
    known = results.get_best_result()
    assert known.metrics["right"] == made_up(best)
    assert ArchGraph.from_json(known.config["architecture"]) == best


def suggest(search: EmbeddingSearch, trial_id: str) -> Any:
    """Its proposals are made in a thread."""
    while (config := search.suggest(trial_id)) is None:
        time.sleep(0.01)
    return config


def test_a_saved_search_goes_on_with_what_runs_and_forgets_nothing(
    make_searcher: Callable[..., Searcher], tmp_path: Path
) -> None:
    """Twelve trials; it is saved when two have their results and three are running."""
    file = tmp_path / "search.json"
    search = EmbeddingSearch(make_searcher("evolution"), workers=2)
    for name in ("a", "b", "c", "d"):
        config = suggest(search, name)
        assert json.loads(config["architecture"])
    search.on_trial_complete("a", {"accuracy": 0.5, "time_total_s": 2.0})
    search.on_trial_complete("b", error=True)
    suggest(search, "e")  # by then what was held is told
    search.save(str(file))
    json.loads(file.read_text())
    searcher = make_searcher("evolution")
    again = EmbeddingSearch(searcher, workers=2)
    again.restore(str(file))
    for name, accuracy_ in (("c", 0.6), ("d", 0.7), ("e", 0.8)):
        again.on_trial_complete(name, {"accuracy": accuracy_})
    numbers = []
    while (config := suggest(again, "next")) != EmbeddingSearch.FINISHED:
        numbers.append(config["trial"]["trial"])
        again.on_trial_complete("next", {"accuracy": 0.8})
    assert numbers == list(range(5, 12))
    accuracies = [searcher.outcomes[number].accuracy for number in range(12)]
    assert accuracies == [0.5, None, 0.6, 0.7] + [0.8] * 8
    assert searcher.outcomes[0].seconds == 2.0


def test_the_space_and_the_mode_are_the_searchers_own(
    make_searcher: Callable[..., Searcher],
) -> None:
    searcher = make_searcher("random")
    with pytest.raises(EsnacError, match="maximised.*'min'"):
        EmbeddingSearch(searcher, mode="min")
    search = EmbeddingSearch(searcher)
    assert not search.set_search_properties("accuracy", "min", {})
    assert not search.set_search_properties("accuracy", "max", {"lr": 0.1})
    assert search.set_search_properties("right", "max", {})
    assert search.metric == "right"


@pytest.mark.parametrize("result", [None, {}, {"other": 0.5}, {"accuracy": float("nan")}])
def test_a_trial_without_an_accuracy_has_failed(
    result: dict[str, float] | None, make_searcher: Callable[..., Searcher]
) -> None:
    searcher = make_searcher("random")
    search = EmbeddingSearch(searcher)
    suggest(search, "a")
    search.on_trial_complete("a", result)
    suggest(search, "b")
    assert searcher.outcomes[0].state == "FAILED"
    assert "'accuracy'" in searcher.outcomes[0].reason


def test_a_fault_of_the_driver_ends_the_search_and_comes_out(
    make_searcher: Callable[..., Searcher],
) -> None:
    """Tune itself would go on after an error in a search algorithm."""

    def full(rows: Rows) -> None:
        if rows[0]["state"] != "PROPOSED":
            raise OSError("disk full")

    searcher = make_searcher("random")
    feed = StreamingFeed(searcher, full, workers=2)
    search = _RunSearch(searcher, feed, fetch=lambda number: None, started=_Started())
    suggest(search, "a")
    suggest(search, "b")
    search.on_trial_complete("a", error=True)
    while search.suggest("c") != EmbeddingSearch.FINISHED:
        time.sleep(0.01)
    assert isinstance(search.error, OSError)
    search.on_trial_complete("b", error=True)
    assert isinstance(search.error, OSError)
