"""How a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from esnac.errors import SettingsError
from esnac.runtime import WantedPrecision
from esnac.settings import require


@dataclass(frozen=True)
class TrainingSettings:
    """Checked on construction (SettingsError). Weight decay and its default follow ESNAC."""

    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    #: With "one_cycle" its peak, else the rate at the start.
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    #: L2 penalty on all parameters, as published.
    weight_decay: float = 5e-4
    #: Spare biases and the scales and shifts of norms the weight decay.
    no_decay_norm: bool = False
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "constant"
    #: "step": epochs (from 0) at whose start the rate is multiplied by `gamma`.
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    precision: WantedPrecision = "auto"
    distillation: Literal["none", "logit_mse", "soft_targets"] = "none"
    #: Weight of the cross entropy with the labels.
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    #: Of "soft_targets" (Hinton et al. 2015, section 2).
    temperature: float = 4.0
    #: Examples that the distillation term counts (`distillation.ask`): all, those whose prediction
    #: has more than `ask_entropy` bits, each with a chance by its entropy, or wrong ones.
    ask_teacher: Literal["always", "entropy", "random", "wrong"] = "always"
    ask_entropy: float = 0.0
    #: Weights kept: of the epoch best in validation accuracy (the earliest of equals), or the last.
    select: Literal["best", "last"] = "best"
    #: Largest norm of all gradients together; None: no limit.
    clip_norm: float | None = None
    #: The first epochs train on random windows of `early_side` pixels a side: fewer pixels, so more
    #: epochs in the same time. For networks that take any size, and without distillation.
    early_epochs: int = 0
    early_side: int = 24

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.batch_size >= 2, "batch_size", "at least 2 (batch norm)", self.batch_size)
        for name in ("learning_rate", "gamma", "temperature"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, "greater than 0", value)
        for name in ("weight_decay", "label_weight", "distillation_weight", "ask_entropy"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, "at least 0", value)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(not self.nesterov or self.momentum > 0, "nesterov", "false without momentum", True)
        require(
            0 <= self.early_epochs <= self.epochs, "early_epochs", "0 to epochs", self.early_epochs
        )
        require(self.early_side >= 1, "early_side", "at least 1", self.early_side)
        require(not (self.early_epochs and self.distills), "early_epochs", "0 to distil", True)
        clip = self.clip_norm
        require(clip is None or 0 < clip < math.inf, "clip_norm", "greater than 0", clip)
        rising = all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False))
        require(rising, "milestones", "rising epochs from 1", list(self.milestones))
        if self.schedule == "step" and not self.milestones:
            raise SettingsError("schedule 'step' needs milestones, for example [100, 200].")
        if self.schedule != "step" and self.milestones:
            raise SettingsError(
                f"milestones belong to schedule 'step', not to {self.schedule!r}: "
                "set milestones=[] or schedule='step'."
            )
        asks = self.ask_teacher == "always" or self.distills
        require(asks, "ask_teacher", "always without distillation", self.ask_teacher)
        if not self.label_weight and not (self.distills and self.distillation_weight):
            raise SettingsError(
                "Nothing to learn from: label_weight is 0 and there is no distillation. "
                "Set distillation to logit_mse or soft_targets, or label_weight above 0."
            )

    @property
    def distills(self) -> bool:
        """Whether the loss needs the teacher's targets."""
        return self.distillation != "none"
