"""A run's full training, as a later stage changes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from esnac.training import TrainingSettings

Distillation = Literal["none", "logit_mse", "soft_targets"]


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
    """
    length = training.epochs if epochs is None else epochs
    moved = (round(epoch * length / training.epochs) for epoch in training.milestones)
    milestones = tuple(sorted({epoch for epoch in moved if 1 <= epoch < length}))
    step = training.schedule == "step"
    return replace(
        training,
        epochs=length,
        learning_rate=training.learning_rate if learning_rate is None else learning_rate,
        distillation=training.distillation if distillation is None else distillation,
        schedule="constant" if step and not milestones else training.schedule,
        milestones=milestones,
        early_epochs=0,
    )
