"""Full training of a finalist: labels, and the teacher's targets where the settings say so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from esnac.errors import EsnacError
from esnac.graphs.masks import attach_masks, masks_of_zeros
from esnac.graphs.network import StudentNetwork
from esnac.quantization.attach import is_quantized
from esnac.runtime import derive_seed, seeded
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import measure, save_student, trainable
from esnac.stages.retraining import retrain
from esnac.training import TrainingSettings

#: Fresh weights have no quantisers.
NO_QUANTIZERS = "Training from scratch would drop its quantisers: put it before what quantises."


@dataclass(frozen=True)
class FullTraining:
    """Trains on from the student's weights, or `from_scratch` from fresh ones."""

    training: TrainingSettings
    from_scratch: bool = False
    name: str = "train"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        start = time.perf_counter()
        student = trainable(source, context.device)
        if self.from_scratch:
            seed = derive_seed(context.seed, "full training", context.index)
            student = _fresh(student, seed).to(context.device)
        retrain(student, self.training, context, target / CHECKPOINT, "full training")
        return context.group.from_first(lambda: self._keep(student, target, context, start))

    def _keep(
        self, student: StudentNetwork, target: Path, context: StageContext, start: float
    ) -> StageResult:
        save_student(target, student)
        return measure(self.name, target, context, start)


def _fresh(student: StudentNetwork, seed: int) -> StudentNetwork:
    """Other weights of the same architecture under the same masks."""
    if is_quantized(student):
        raise EsnacError(f"The student is quantised already. {NO_QUANTIZERS}")
    with seeded(seed, torch.device("cpu")):
        fresh = StudentNetwork(student.graph)
    fresh.preparation = student.preparation
    attach_masks(fresh, {name: keep.cpu() for name, keep in masks_of_zeros(student).items()})
    return fresh
