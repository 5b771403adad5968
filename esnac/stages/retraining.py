"""A run's full training, as a later stage changes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from esnac.distillation.losses import Distillation, make_loss
from esnac.runtime import derive_seed
from esnac.settings import require
from esnac.stages._base import StageContext
from esnac.training import Hooks, TrainingResult, TrainingSettings, fit
from esnac.training.hooks import NO_HOOKS

#: The end of the names of learned steps (`quantization.lsq`).
STEP = ".raw_step"


def require_training(epochs: int | None, learning_rate: float | None) -> None:
    """Raises SettingsError for what no training can have; None is what the run has."""
    require(epochs is None or epochs >= 1, "epochs", "at least 1", epochs)
    rate = learning_rate
    require(rate is None or rate > 0, "learning_rate", "greater than 0", rate)


def retraining(
    training: TrainingSettings,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    distillation: Distillation | None = None,
) -> TrainingSettings:
    """`training` with what is given; None leaves what is there.

    Milestones keep their share of the epochs (those that fall on the same epoch count once; without
    any left the rate is constant). A student is trained already, so no epochs on small windows.
    Without distillation the labels count fully; with it, a weight of 0 becomes 1.
    """
    length = training.epochs if epochs is None else epochs
    moved = (round(epoch * length / training.epochs) for epoch in training.milestones)
    milestones = tuple(sorted({epoch for epoch in moved if 1 <= epoch < length}))
    step = training.schedule == "step"
    if distillation == "none":  # then labels are all there is
        training = replace(training, distillation="none", ask_teacher="always", label_weight=1.0)
    elif distillation is not None and not training.distillation_weight:
        training = replace(training, distillation_weight=1.0)
    return replace(
        training,
        epochs=length,
        learning_rate=training.learning_rate if learning_rate is None else learning_rate,
        distillation=training.distillation if distillation is None else distillation,
        schedule="constant" if step and not milestones else training.schedule,
        milestones=milestones,
        early_epochs=0,
    )


def retrain(
    student: nn.Module,
    training: TrainingSettings,
    context: StageContext,
    checkpoint: Path,
    *purpose: str | int,
    hooks: Hooks = NO_HOOKS,
) -> TrainingResult:
    """Trains a student in place, with seeds of its `purpose`; goes on from `checkpoint`.

    Learned steps of quantisers are spared the weight decay, as a penalty would shrink them.
    """
    if any(name.endswith(STEP) for name, _ in student.named_parameters()):
        training = replace(training, no_decay_norm=True)
    return fit(
        student,
        context.data,
        training,
        loss=make_loss(training),
        seed=derive_seed(context.seed, *purpose, context.index),
        augmentation_seed=derive_seed(context.seed, "augmentation"),
        targets=context.targets,
        device=context.device,
        checkpoint=checkpoint,
        on_epoch=context.on_epoch,
        group=context.group,
        hooks=hooks,
    )
