"""Full training of one finalist by two workers of a Ray cluster, joined by gloo."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ray")

import ray.cloudpickle
from PIL import Image
from ray.train import WorkerGroupError

from esnac import data as data_room
from esnac import networks
from esnac.cluster import Cluster, ClusterSettings, connected
from esnac.data import DataSet, DataSettings
from esnac.data.arrays import pack, unpack
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.errors import TrainingError
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.group import Group
from esnac.runtime import derive_seed
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.distributed import _reason, together
from esnac.stages.full_training import FullTraining
from esnac.stages.pipeline import Link, Step
from esnac.stages.remote import Workshop, run_stages
from esnac.training import EpochRecord, TrainingSettings, fit
from esnac.training.together import joined

CPU = torch.device("cpu")
SEED = 7
TRAINING = TrainingSettings(
    epochs=3,
    batch_size=128,
    learning_rate=0.02,
    schedule="cosine",
    precision="float32",
    distillation="soft_targets",
)

# Workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Fateful:
    """Loses a worker after the second epoch, once."""

    training: TrainingSettings
    log: Path
    name: str = "train"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        killed = self.log / "killed"

        def on_epoch(record: EpochRecord) -> None:
            with (self.log / f"rank-{context.group.rank}").open("a") as file:
                file.write(f"{record.epoch} ")
            if context.group.rank == 1 and record.epoch == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        watched = dataclasses.replace(context, on_epoch=on_epoch)
        return FullTraining(self.training).run(source, target, watched)


def half_trained(data: DataSet) -> StudentNetwork:
    """A ResNet-20 as the search leaves it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = StudentNetwork(trace(networks.build("resnet20", 10, 1), data.input_shape))
    settings = TrainingSettings(8, learning_rate=0.1, schedule="cosine", precision="float32")
    loss = make_loss(settings)
    fit(student, data, settings, loss=loss, seed=0, augmentation_seed=0, device=CPU)
    return student


@dataclass(frozen=True)
class Outcome:
    """What one process made of a student, what two workers reported, and their folder."""

    one: StageResult
    found: dict[int, StageResult | str]
    folder: Path


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with connected(ClusterSettings("ray", workers=2)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def outcome(two: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("finals")
    data = data_room.load("digits", None, DataSettings())
    student = half_trained(data)
    students.save(folder / "source", student)
    targets = TeacherTargets(student, data, derive_seed(SEED, "augmentation"), CPU)
    context = StageContext(data, targets, CPU, SEED, 0, TRAINING, teacher_accuracy=0.9)
    one = FullTraining(TRAINING).run(folder / "source", folder / "one", context)
    workshop = Workshop.of(context, student.graph, student.state_dict(), "float32")
    found: dict[int, StageResult | str] = {}
    link = Link(0, "train", Fateful(TRAINING, folder))
    run_stages(
        [[Step(0, link, folder / "source", folder / "0")]],
        workshop,
        two,
        lambda step, result: found.update({step.index: result}),
        together=2,
    )
    return Outcome(one, found, folder)


@pytest.mark.slow
def test_two_workers_train_as_well_as_one(outcome: Outcome) -> None:
    """From trained weights on; from fresh ones rounding alone decides over a point of accuracy on
    359 images."""
    one, two = outcome.one, outcome.found[0]
    assert isinstance(two, StageResult)
    assert one.accuracy > 0.9
    assert two.accuracy == pytest.approx(one.accuracy, abs=0.005)
    assert two.path == outcome.folder / "0"
    assert (two.params, two.macs) == (one.params, one.macs)
    before, mine, theirs = (
        students.load(outcome.folder / name).state_dict() for name in ("source", "one", "0")
    )
    for name, tensor in mine.items():
        moved = (tensor - before[name]).float().norm()
        assert (theirs[name] - tensor).float().norm() <= 0.1 * moved + 1e-6, name


@pytest.mark.slow
def test_a_lost_worker_costs_no_finished_epoch(outcome: Outcome) -> None:
    assert (outcome.folder / "killed").exists()
    assert (outcome.folder / "rank-0").read_text() == "0 1 2 ", "no epoch twice"
    assert (outcome.folder / "0" / CHECKPOINT).is_dir()


def test_the_reason_names_the_worker() -> None:
    faults = {1: RuntimeError("connection closed"), 0: ValueError("Traceback\n  line\nbroken\n")}
    assert _reason(WorkerGroupError("", faults)) == "worker 0: broken"
    assert _reason(WorkerGroupError("", {3: RuntimeError()})) == "worker 3: RuntimeError"


@pytest.mark.slow
def test_the_error_of_one_worker_ends_the_others(two: Cluster, tmp_path: Path) -> None:
    """Which wait for it: their own limit is half an hour."""

    def work(group: Group, device: torch.device) -> float:
        with (tmp_path / str(group.rank)).open("a") as file:
            file.write("x")
        with joined(nn.Linear(2, 2), group) as model:
            for step in range(3):
                if group.rank == step == 1:
                    raise TrainingError("worker 1 cannot read its images")
                model(torch.ones(4, 2)).sum().backward()
        return 0.0

    start = time.perf_counter()
    with pytest.raises(TrainingError, match="^worker 1 cannot read its images$"):
        together(work, 2, two)
    assert (tmp_path / "1").read_text() == "x", "it is not tried again"
    assert time.perf_counter() - start < 300, "the limit of gloo is half an hour"


@pytest.mark.slow
def test_an_error_of_all_workers_is_told_at_once(two: Cluster, tmp_path: Path) -> None:
    """Here it tells what they streamed, by processes of their own. No group starts again."""
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for index in range(12):
            image = Image.new("L", (8, 8), 100 * label + index)
            image.save(tmp_path / "images" / str(label) / f"{index}.png")
    data = data_room.load(f"images:{tmp_path / 'images'}", None, DataSettings(size=8, stream=True))
    packed = pack(data)

    def work(group: Group, device: torch.device) -> float:
        with (tmp_path / str(group.rank)).open("a") as file:
            file.write("x")
        train = unpack(packed).train
        rows = torch.arange(len(train))[group.rows(len(train))]
        (images,) = train.batches([rows])
        raise TrainingError(f"the sum is {group.sum(images.double().sum()).item()}")

    with pytest.raises(TrainingError) as caught:
        together(work, 2, two)
    (images,) = data.train.batches([torch.arange(len(data.train))])
    assert str(caught.value) == f"the sum is {images.double().sum().item()}"
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "x"
