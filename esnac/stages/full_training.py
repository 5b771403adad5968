"""Full training of a finalist: labels, and the teacher's targets where the settings say so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from esnac.distillation.losses import make_loss
from esnac.graphs.masks import attach_masks, masks_of_zeros
from esnac.graphs.network import StudentNetwork
from esnac.quantization import store
from esnac.quantization.attach import is_quantized
from esnac.runtime import derive_seed, seeded
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import load_student, measure
from esnac.training import TrainingSettings, fit


@dataclass(frozen=True)
class FullTraining:
    """Trains on from the student's weights, or `from_scratch` from fresh ones."""

    training: TrainingSettings
    from_scratch: bool = False
    name: str = "train"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        start = time.perf_counter()
        student = load_student(source)
        if not is_quantized(student):  # a quantised one has its masks; other zeros are codes
            attach_masks(student, masks_of_zeros(student))
        seed = derive_seed(context.seed, "full training", context.index)
        if self.from_scratch:
            known = student.preparation
            with seeded(seed, torch.device("cpu")):
                student = StudentNetwork(student.graph)
            student.preparation = known
        fit(
            student.to(context.device),
            context.data,
            self.training,
            loss=make_loss(self.training),
            seed=seed,
            augmentation_seed=derive_seed(context.seed, "augmentation"),
            targets=context.targets,
            device=context.device,
            checkpoint=target / CHECKPOINT,
            on_epoch=context.on_epoch,
            group=context.group,
        )
        return context.group.from_first(lambda: self._keep(student, target, context, start))

    def _keep(
        self, student: StudentNetwork, target: Path, context: StageContext, start: float
    ) -> StageResult:
        store.save(target, student)
        return measure(self.name, target, context, start)
