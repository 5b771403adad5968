"""The one training loop for teachers, trials and full training."""

from esnac.training.evaluate import accuracy, logits
from esnac.training.loop import EpochRecord, Targets, Training, TrainingResult, fit
from esnac.training.settings import TrainingSettings

__all__ = [
    "EpochRecord",
    "Targets",
    "Training",
    "TrainingResult",
    "TrainingSettings",
    "accuracy",
    "fit",
    "logits",
]
