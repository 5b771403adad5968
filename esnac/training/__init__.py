"""The one training loop for teachers, trials and full training."""

from esnac.training.evaluate import accuracy, logits
from esnac.training.hooks import Hooks
from esnac.training.loop import EpochRecord, Targets, Training, TrainingResult, fit
from esnac.training.settings import TrainingSettings

__all__ = [
    "EpochRecord",
    "Hooks",
    "Targets",
    "Training",
    "TrainingResult",
    "TrainingSettings",
    "accuracy",
    "fit",
    "logits",
]
