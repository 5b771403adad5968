"""Final stages as Ray tasks: what comes back is what they would have done in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import nn

from esnac.cluster import Cluster, ClusterSettings, connected
from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, TrainingError
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.group import ALONE
from esnac.runtime import derive_seed
from esnac.stages._base import CHECKPOINT, Stage, StageContext, StageResult
from esnac.stages.full_training import FullTraining
from esnac.stages.pipeline import Link, Step, steps
from esnac.stages.remote import Job, Workshop, _in_order, run_stages
from esnac.training import TrainingSettings, accuracy

SEED = 7
CPU = torch.device("cpu")
TRAINING = TrainingSettings(
    epochs=2,
    batch_size=32,
    learning_rate=0.05,
    precision="float32",
    distillation="soft_targets",
)

# Workers do not see this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def network(seed: int, width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Dropout(0.2), nn.Flatten(), nn.Linear(width * 64, 3),
        )  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    graph: ArchGraph
    weights: dict[str, torch.Tensor]
    targets: TeacherTargets

    @classmethod
    def of(cls, module: nn.Module, data: DataSet) -> Teacher:
        graph = trace(module, data.input_shape)
        weights = teacher_weights(graph, module.state_dict())
        seed = derive_seed(SEED, "augmentation")
        student = StudentNetwork(graph, weights).eval()
        return cls(graph, weights, TeacherTargets(student, data, seed, CPU))

    def context(self, data: DataSet, index: int = 0) -> StageContext:
        return StageContext(data, self.targets, CPU, SEED, index, TRAINING, teacher_accuracy=0.9)

    def workshop(self, data: DataSet) -> Workshop:
        return Workshop.of(self.context(data), self.graph, self.weights, "auto")


@pytest.fixture(scope="module")
def data(bars: DataSet) -> DataSet:
    return bars.to(CPU)


@pytest.fixture(scope="module")
def teacher(data: DataSet) -> Teacher:
    return Teacher.of(network(9, width=12), data)


def finalists(folder: Path, count: int) -> dict[int, tuple[Path, Path]]:
    """Sources and targets, each source another student."""
    found = {}
    for index in range(count):
        source = folder / "trials" / str(index)
        students.save(source, StudentNetwork(trace(network(index), (1, 8, 8))))
        found[index] = source, folder / "finalists" / str(index)
    return found


def chains(stage: Stage, given: dict[int, tuple[Path, Path]]) -> list[list[Step]]:
    """One link for each finalist."""
    link = Link(0, "train", stage)
    return [[Step(index, link, source, target)] for index, (source, target) in given.items()]


def figures(result: StageResult) -> dict[str, Any]:
    return {k: v for k, v in vars(result).items() if k not in ("path", "seconds")}


def same_weights(one: Path, other: Path) -> bool:
    return (one / students.WEIGHTS).read_bytes() == (other / students.WEIGHTS).read_bytes()


@dataclass(frozen=True)
class Sometimes:
    """Full training, but finalist 1 diverges, 2 has a fault, 3 kills its worker every time and 4 is
    too large."""

    honest: FullTraining = field(default_factory=lambda: FullTraining(TRAINING))
    name: str = "train"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        if context.index == 1:
            raise TrainingError("The loss is not finite.")
        if context.index == 2:
            raise ValueError("first line\nlast line")
        if context.index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if context.index == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.")
        return self.honest.run(source, target, context)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(ClusterSettings("ray", workers=2)) as cluster:
        yield cluster


@pytest.mark.slow
def test_finalists_end_as_in_this_process_and_fail_alone(
    cluster: Cluster, data: DataSet, teacher: Teacher, tmp_path: Path
) -> None:
    given = finalists(tmp_path, 6)
    found: dict[int, StageResult | str] = {}

    def report(step: Step, result: StageResult | str) -> None:
        assert step.index not in found
        found[step.index] = result

    work = chains(Sometimes(), given)
    run_stages(work, teacher.workshop(data), cluster, report, retries=1, in_order=True)
    assert list(found) == [0, 1, 2, 3, 4, 5], "those that fail at once wait for the first"
    for index in (0, 5):
        source, target = given[index]
        here = tmp_path / "here" / str(index)
        wanted = FullTraining(TRAINING).run(source, here, teacher.context(data, index))
        result = found[index]
        assert isinstance(result, StageResult)
        assert figures(result) == figures(wanted)
        assert result.path == target
        assert same_weights(target, here)
    assert found[1] == "The loss is not finite."
    assert found[2] == "ValueError: first line"
    assert "worker was lost" in found[3]
    assert "smaller batch" in found[4]
    left = {path.name for path in (tmp_path / "finalists").iterdir()}
    assert left == {"0", "5"}, "no mark of the driver, nothing of what failed"


@dataclass(frozen=True)
class Noting:
    """Leaves the student as it is and a note beside it; in `failing` finalists it fails."""

    name: str
    failing: tuple[int, ...] = ()

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        if context.index in self.failing:
            raise EsnacError(f"{self.name} fails.")
        target.mkdir(parents=True)
        for file in source.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        (target / self.name).write_text(str(context.teacher_accuracy))
        return StageResult(self.name, target, 0.5, context.training.learning_rate, 1, 1, 0.1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("in_order", [True, False])
def test_chains_go_on_from_link_to_link(
    in_order: bool, cluster: Cluster, data: DataSet, teacher: Teacher, tmp_path: Path
) -> None:
    """Finalist 1 fails in its second link; finalist 2 has one link left."""
    chain = [Link(n, f"note{n}", Noting(f"note{n}", (1,) if n == 2 else ())) for n in (1, 2, 3)]
    work = []
    for index, (source, finalist) in finalists(tmp_path, 3).items():
        done = {1, 2} if index == 2 else set()
        work.append(steps(index, chain, source, finalist, done))
    students.save(tmp_path / "finalists" / "2" / "2-note2", StudentNetwork(teacher.graph))
    told: list[tuple[int, int, str]] = []

    def report(step: Step, result: StageResult | str) -> None:
        told.append((step.index, step.link.number, getattr(result, "stage", result)))
        if isinstance(result, StageResult):
            assert result.path == step.target
            assert result.validation_accuracy == TRAINING.learning_rate

    run_stages(work, teacher.workshop(data), cluster, report, in_order=in_order)
    expected = [
        *[(0, 1, "note1"), (0, 2, "note2"), (0, 3, "note3")],
        *[(1, 1, "note1"), (1, 2, "note2 fails.")],
        (2, 3, "note3"),
    ]
    assert (told if in_order else sorted(told)) == expected
    end = tmp_path / "finalists" / "0" / "3-note3"
    names = {"note1", "note2", "note3", students.ARCHITECTURE, students.WEIGHTS}
    assert {path.name for path in end.iterdir()} == names
    assert (end / "note2").read_text() == "0.9"
    assert not (tmp_path / "finalists" / "1" / "2-note2").exists()


def test_reports_wait_for_those_of_the_finalist_before(tmp_path: Path) -> None:
    one, two = (Link(n, "note", Noting("note")) for n in (1, 2))
    chains = [[Step(i, link, tmp_path, tmp_path) for link in (one, two)] for i in range(3)]
    told: list[tuple[int, int]] = []
    report = _in_order(chains, lambda step, _: told.append((step.index, step.link.number)))
    result = StageResult("note", tmp_path, 0.5, 0.5, 1, 1, 0.1, 1)
    report(chains[1][0], result)
    report(chains[2][0], "failed")
    assert told == []
    report(chains[0][0], result)
    assert told == [(0, 1)]
    report(chains[1][1], result)
    assert told == [(0, 1)]
    report(chains[0][1], result)
    assert told == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1)]


def test_without_finalists_nothing_is_started(tmp_path: Path) -> None:
    run_stages([[], []], None, None, lambda step, result: pytest.fail("why"))


@pytest.mark.parametrize("sees_the_run", [True, False])
def test_a_worker_leaves_its_files_in_the_run_or_sends_them(
    sees_the_run: bool, data: DataSet, teacher: Teacher, tmp_path: Path
) -> None:
    ((source, target),) = finalists(tmp_path, 1).values()
    mark = tmp_path / "mark"
    if sees_the_run:
        mark.touch()
    files = {name: (source / name).read_bytes() for name in students.FILES}
    job = Job(FullTraining(TRAINING), files, target, mark, 0)
    result, sent = job.run(teacher.workshop(data), CPU, ALONE)
    assert target.exists() == sees_the_run
    if sees_the_run:
        assert sent is None
        assert (target / CHECKPOINT).exists(), "a second try goes on from it"
    else:
        assert not result.path.exists()
        for name, content in sent.items():
            target.mkdir(exist_ok=True, parents=True)
            (target / name).write_bytes(content)
    assert accuracy(students.load(target), data.test, data) == result.accuracy


def test_a_workshop_makes_the_context_it_was_made_of(data: DataSet, teacher: Teacher) -> None:
    context = teacher.workshop(data).context(CPU, 3)
    assert (context.seed, context.index, context.targets.seed) == (SEED, 3, teacher.targets.seed)
    assert torch.equal(context.data.test.images, data.test.images)
    for epoch in (0, 1):
        assert torch.equal(context.targets.epoch(epoch), teacher.targets.epoch(epoch))
    assert not torch.equal(context.targets.epoch(0), context.targets.epoch(1)), "augmented"
    still = replace(data, padding=0, flip=False)
    assert teacher.workshop(still).context(CPU, 0).data.padding == 0
