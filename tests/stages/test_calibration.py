from __future__ import annotations

import dataclasses

import pytest
import torch

from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.stages import calibration
from esnac.stages._base import StageContext
from esnac.training import TrainingSettings
from tests.stages.test_prune import student


@pytest.fixture
def context(bars: DataSet) -> StageContext:
    data, cpu = bars.to("cpu"), torch.device("cpu")
    targets = TeacherTargets(student(0).eval(), data, 0, cpu)
    return StageContext(data, targets, cpu, 7, 0, TrainingSettings(epochs=1), teacher_accuracy=1.0)


def test_the_same_images_each_time_and_others_for_another_purpose(context: StageContext) -> None:
    def inputs(purpose: str, of: StageContext = context) -> torch.Tensor:
        return torch.cat([inputs for inputs, _ in calibration.batches(of, purpose)])

    once = inputs("ranges")
    assert len(once) == len(context.data.train)
    assert torch.equal(once, inputs("ranges"))
    assert not torch.equal(once, inputs("gradients"))
    assert not torch.equal(once, inputs("ranges", dataclasses.replace(context, index=1)))


def test_as_many_batches_as_are_wanted(context: StageContext) -> None:
    (batch,) = calibration.batches(context, "ranges", 1)
    assert [len(part) for part in batch] == [calibration.BATCH] * 2
