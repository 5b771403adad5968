from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.graphs import student as students
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.stages._base import StageContext, StageResult, clean
from esnac.stages.full_training import FullTraining
from esnac.training import EpochRecord, TrainingSettings, accuracy

TRAINING = TrainingSettings(
    epochs=4,
    batch_size=32,
    learning_rate=0.05,
    schedule="one_cycle",
    precision="float32",
    distillation="soft_targets",
)


def student(seed: int) -> StudentNetwork:
    """The same architecture with weights that follow from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(8 * 64, 3),
        )  # fmt: skip
        return StudentNetwork(trace(module, (1, 8, 8)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    students.save(tmp_path / "source", student(0))
    return tmp_path / "source"


@pytest.fixture
def context(bars: DataSet, device: torch.device) -> StageContext:
    seed = derive_seed(7, "augmentation")
    targets = TeacherTargets(student(9).to(device).eval(), bars, seed, device)
    return StageContext(bars, targets, device, 7, 0, training=TRAINING, teacher_accuracy=0.9)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return students.load(folder).state_dict()


def close(one: Path, other: Path) -> bool:
    """Equal weights, up to the order in which a GPU sums."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    return all(torch.allclose(mine[name], theirs[name], atol=1e-4) for name in mine)


def figures(result: StageResult) -> dict[str, Any]:
    return {k: v for k, v in vars(result).items() if k not in ("path", "seconds", "details")}


def test_the_result_is_that_of_the_files(
    source: Path, tmp_path: Path, context: StageContext, bars: DataSet, device: torch.device
) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    result = FullTraining(TRAINING).run(source, tmp_path / "a" / "0", context)
    assert (result.stage, result.path) == ("train", tmp_path / "a" / "0")
    again = students.load(result.path).to(device)
    assert accuracy(again, bars.test, bars) == result.accuracy
    assert accuracy(again, bars.validation, bars) == result.validation_accuracy
    assert result.accuracy > 0.6, "three classes: a guess is right once in three"
    spent = cost(again.graph)
    assert (result.params, result.macs) == (spent.params, spent.macs)
    assert result.params == sum(tensor.numel() for tensor in again.parameters())
    assert result.bytes == (result.path / students.WEIGHTS).stat().st_size
    assert result.to_plain()["path"] == str(result.path)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert not close(source, result.path)


def test_from_scratch_forgets_the_weights_of_the_source(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    students.save(tmp_path / "other", student(1))
    training = dataclasses.replace(TRAINING, epochs=1)
    for name, scratch in (("on", False), ("scratch", True)):
        stage = FullTraining(training, from_scratch=scratch)
        stage.run(source, tmp_path / name / "source", context)
        stage.run(tmp_path / "other", tmp_path / name / "other", context)
    assert close(tmp_path / "scratch/source", tmp_path / "scratch/other")
    assert not close(tmp_path / "on/source", tmp_path / "on/other")
    assert not close(tmp_path / "on/source", tmp_path / "scratch/source")


def test_finalists_are_trained_in_different_orders(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    training = dataclasses.replace(TRAINING, epochs=1)
    for index in (0, 1):
        numbered = dataclasses.replace(context, index=index)
        FullTraining(training).run(source, tmp_path / str(index), numbered)
    assert not close(tmp_path / "0", tmp_path / "1")


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("done", [1, 3])
def test_an_interrupted_training_goes_on_to_the_same_end(
    done: int, from_scratch: bool, source: Path, tmp_path: Path, context: StageContext
) -> None:
    stage = FullTraining(TRAINING, from_scratch)
    whole = stage.run(source, tmp_path / "whole", context)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == done:
            raise KeyboardInterrupt

    watched = dataclasses.replace(context, on_epoch=interrupt)
    with pytest.raises(KeyboardInterrupt):
        stage.run(source, tmp_path / "broken", watched)
    assert not (tmp_path / "broken" / students.WEIGHTS).exists()
    resumed = stage.run(source, tmp_path / "broken", watched)
    assert epochs == [0, 1, 2, 3], "no epoch twice"
    assert figures(resumed) == pytest.approx(figures(whole), abs=0.03)
    assert close(tmp_path / "whole", tmp_path / "broken")


def test_a_result_that_was_not_recorded_costs_no_second_training(
    source: Path, tmp_path: Path, context: StageContext
) -> None:
    """Killed between the end of the training and the journal line."""
    epochs: list[int] = []
    watched = dataclasses.replace(context, on_epoch=lambda record: epochs.append(record.epoch))
    first = FullTraining(TRAINING).run(source, tmp_path / "0", watched)
    again = FullTraining(TRAINING).run(source, tmp_path / "0", watched)
    assert epochs == [0, 1, 2, 3]
    assert figures(again) == figures(first)
    clean(tmp_path / "0")
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        students.ARCHITECTURE,
        students.WEIGHTS,
    ]
