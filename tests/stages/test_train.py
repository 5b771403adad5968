from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.errors import SettingsError
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.stages import STAGES, train
from esnac.stages._base import StageContext
from esnac.stages.full_training import FullTraining
from esnac.stages.train import TrainSettings, TrainStage
from esnac.training import TrainingSettings

TRAINING = TrainingSettings(epochs=9, batch_size=32, learning_rate=0.05, precision="float32")


@pytest.fixture
def context(bars: DataSet, device: torch.device) -> StageContext:
    teacher = StudentNetwork(trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8)))
    targets = TeacherTargets(teacher.to(device), bars, derive_seed(7, "augmentation"), device)
    return StageContext(bars, targets, device, 7, 0, TRAINING, teacher_accuracy=0.9)


def test_it_trains_as_full_training_does_with_what_is_given_changed(
    context: StageContext, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    students.save(tmp_path / "source", StudentNetwork(trace(module, (1, 8, 8))))
    given = TrainSettings(epochs=2, learning_rate=0.01)
    result = TrainStage(given).run(tmp_path / "source", tmp_path / "a", context)
    training = TrainingSettings(
        2, 32, learning_rate=0.01, precision="float32", distillation="soft_targets"
    )
    FullTraining(training).run(tmp_path / "source", tmp_path / "b", context)
    one, other = (students.load(tmp_path / name).state_dict() for name in ("a", "b"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-5)
    assert result.stage == "train-finetune"


def test_the_registry_knows_it() -> None:
    assert STAGES["train"].load() == (train.TrainSettings, train.TrainStage)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": 0.0}])
def test_what_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        TrainSettings(**wrong)  # type: ignore[arg-type]
