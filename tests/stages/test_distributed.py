"""Full training of one finalist by two workers of a Ray cluster, joined by gloo."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray")

import ray.cloudpickle
from ray.train import WorkerGroupError

from esnac import data as data_room
from esnac import networks
from esnac.cluster import Cluster, ClusterSettings, connected
from esnac.data import DataSet, DataSettings
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.stages._base import StageContext, StageResult
from esnac.stages.distributed import _reason
from esnac.stages.full_training import CHECKPOINT, FullTraining
from esnac.stages.remote import Workshop, run_stages
from esnac.training import EpochRecord, TrainingSettings, fit

CPU = torch.device("cpu")
SEED = 7
TRAINING = TrainingSettings(
    epochs=4,
    batch_size=32,
    learning_rate=0.02,
    schedule="cosine",
    precision="float32",
    distillation="soft_targets",
)

# Workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(ClusterSettings("ray", workers=2)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return data_room.load("digits", None, DataSettings())


def network(data: DataSet, seed: int, name: str = "resnet20") -> StudentNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = networks.build(name, data.num_classes, data.input_shape[0])
        return StudentNetwork(trace(module, data.input_shape))


def warm(data: DataSet, epochs: int) -> StudentNetwork:
    """As the search leaves a student: half trained."""
    student = network(data, 0)
    settings = TrainingSettings(epochs, learning_rate=0.1, schedule="cosine", precision="float32")
    loss = make_loss(settings)
    fit(student, data, settings, loss=loss, seed=0, augmentation_seed=0, device=CPU)
    return student


def contexts(data: DataSet, teacher: StudentNetwork) -> tuple[StageContext, Workshop]:
    """For one process here, and for workers."""
    targets = TeacherTargets(teacher.eval(), data, derive_seed(SEED, "augmentation"), CPU)
    workshop = Workshop.of(data, teacher.graph, teacher.state_dict(), targets, "float32", SEED)
    return StageContext(data, targets, CPU, SEED, 0), workshop


@pytest.mark.slow
def test_two_workers_train_as_well_as_one(
    cluster: Cluster, digits: DataSet, tmp_path: Path
) -> None:
    """ResNet-20; from trained weights on, since from fresh ones the rounding alone decides over a
    point of the accuracy on 359 images."""
    student = warm(digits, epochs=8)
    students.save(tmp_path / "source", student)
    context, workshop = contexts(digits, student)
    stage = FullTraining(dataclasses.replace(TRAINING, batch_size=128))
    one = stage.run(tmp_path / "source", tmp_path / "one", context)
    found: dict[int, StageResult | str] = {}
    run_stages(
        stage,
        {0: (tmp_path / "source", tmp_path / "two")},
        workshop,
        cluster,
        found.__setitem__,
        together=2,
    )
    two = found[0]
    assert isinstance(two, StageResult)
    assert one.accuracy > 0.9
    assert two.accuracy == pytest.approx(one.accuracy, abs=0.005)
    assert two.path == tmp_path / "two"
    assert (two.params, two.macs) == (one.params, one.macs)
    before = students.load(tmp_path / "source").state_dict()
    mine, theirs = (students.load(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, tensor in mine.items():
        moved = (tensor - before[name]).float().norm()
        assert (theirs[name] - tensor).float().norm() <= 0.1 * moved + 1e-6, name


@dataclass(frozen=True)
class Fateful:
    """Finalist 0 loses a worker after its second epoch, once; finalist 1 cannot be trained."""

    training: TrainingSettings
    log: Path
    name: str = "train"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        settings = self.training
        if context.index == 1:
            settings = dataclasses.replace(settings, learning_rate=1e30)
        killed = self.log / "killed"

        def on_epoch(record: EpochRecord) -> None:
            with (self.log / f"{context.index}-{context.group.rank}").open("a") as file:
                file.write(f"{record.epoch} ")
            if context.group.rank == 1 and record.epoch == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        watched = dataclasses.replace(context, on_epoch=on_epoch)
        return FullTraining(settings).run(source, target, watched)


@pytest.mark.slow
def test_a_lost_worker_costs_no_finished_epoch(
    cluster: Cluster, bars: DataSet, tmp_path: Path
) -> None:
    data = bars.to(CPU)
    students.save(tmp_path / "source", network(data, 1))
    context, workshop = contexts(data, network(data, 9))
    whole = FullTraining(TRAINING).run(tmp_path / "source", tmp_path / "whole", context)
    (tmp_path / "log").mkdir()
    found: dict[int, StageResult | str] = {}
    finalists = {index: (tmp_path / "source", tmp_path / str(index)) for index in range(2)}
    stage = Fateful(TRAINING, tmp_path / "log")
    run_stages(stage, finalists, workshop, cluster, found.__setitem__, together=2)

    two = found[0]
    assert isinstance(two, StageResult)
    assert (tmp_path / "log" / "killed").exists()
    assert (tmp_path / "log" / "0-0").read_text() == "0 1 2 3 ", "no epoch twice"
    assert (tmp_path / "0" / CHECKPOINT).is_dir()
    assert two.accuracy == pytest.approx(whole.accuracy, abs=0.03)
    mine, theirs = (students.load(tmp_path / name).state_dict() for name in ("whole", "0"))
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=1e-3)

    assert isinstance(found[1], str)
    assert found[1].startswith("The loss is not finite in epoch 0"), "the reason, in one line"


def test_the_reason_names_the_worker() -> None:
    faults = {1: RuntimeError("connection closed"), 0: ValueError("Traceback\n  line\nbroken\n")}
    assert _reason(WorkerGroupError("", faults)) == "worker 0: broken"
    assert _reason(WorkerGroupError("", {3: RuntimeError()})) == "worker 3: RuntimeError"
