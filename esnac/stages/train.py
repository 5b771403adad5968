"""The stage `train`: more training of a student, between or after other stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esnac.distillation.losses import Distillation
from esnac.stages._base import StageContext, StageResult
from esnac.stages.full_training import NO_QUANTIZERS, FullTraining
from esnac.stages.retraining import require_training, retraining


@dataclass(frozen=True)
class TrainSettings:
    """What is None is as in the run's full training; the teacher helps unless it is told not to."""

    #: "finetune": from the student's weights; "scratch": from fresh ones.
    method: Literal["finetune", "scratch"] = "finetune"
    epochs: int | None = None
    learning_rate: float | None = None
    distillation: Distillation = "soft_targets"

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)


@dataclass(frozen=True)
class TrainStage:
    settings: TrainSettings

    @property
    def name(self) -> str:
        return f"train-{self.settings.method}"

    @property
    def needs_float(self) -> str | None:
        return NO_QUANTIZERS if self.settings.method == "scratch" else None

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        training = retraining(
            context.training,
            epochs=self.settings.epochs,
            learning_rate=self.settings.learning_rate,
            distillation=self.settings.distillation,
        )
        stage = FullTraining(training, self.settings.method == "scratch", self.name)
        return stage.run(source, target, context)
