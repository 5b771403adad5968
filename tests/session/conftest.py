"""A small trained network, three classes that it can tell apart, and a stage made for tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from esnac.data import DataSet, DataSettings, from_tensors
from esnac.distillation.losses import make_loss
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.stages import STAGES, StageKind
from esnac.stages._base import StageContext, StageResult
from esnac.stages.measure import load_student, measure
from esnac.training import TrainingSettings, fit


@dataclass(frozen=True)
class ClearSettings:
    method: Literal["smallest"]
    share: float = 0.5


@dataclass(frozen=True)
class ClearStage:
    """Sets a share of the last layer's weights to zero."""

    settings: ClearSettings
    name: str = "clear"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        start = time.perf_counter()
        student = load_student(source)
        weight = list(student.parameters())[-2].data
        count = int(self.settings.share * weight.numel())
        if not count:
            raise EsnacError("Nothing would be cleared: set a larger share.")
        weight.view(-1)[weight.abs().view(-1).argsort()[:count]] = 0
        students.save(target, student)
        (target / "note.txt").write_text("cleared")
        details = {"cleared": count, "layers": [{"name": "head", "zeros": count}]}
        return measure(self.name, target, context, start, details)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "clear", StageKind(__name__, "ClearSettings", "ClearStage"))


@pytest.fixture(scope="session")
def shades() -> DataSet:
    """Dark, grey and bright noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    images = torch.randint(60, (240, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images += (60 * labels).view(-1, 1, 1, 1).to(torch.uint8)
    return from_tensors((images, labels), None, DataSettings())


@pytest.fixture(scope="session")
def model(shades: DataSet) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Flatten(), nn.Linear(6 * 16, 3),
        )  # fmt: skip
    settings = TrainingSettings(epochs=4, batch_size=32, learning_rate=0.05, precision="float32")
    cpu = torch.device("cpu")
    loss = make_loss(settings)
    fit(network, shades, settings, loss=loss, seed=0, augmentation_seed=0, device=cpu)
    return network
