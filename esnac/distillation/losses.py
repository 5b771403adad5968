"""Losses of a student with labels and a teacher's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from esnac.distillation.ask import Ask, asked, where_asked
from esnac.errors import TrainingError, UnknownNameError

Distillation = Literal["none", "logit_mse", "soft_targets"]


class LossFields(Protocol):
    """The fields of the training settings that a loss depends on."""

    @property
    def distillation(self) -> Distillation: ...
    @property
    def label_weight(self) -> float: ...
    @property
    def distillation_weight(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def ask_teacher(self) -> Ask: ...
    @property
    def ask_entropy(self) -> float: ...


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and classes of the squared difference of logits (ESNAC, section 4.1)."""
    return F.mse_loss(student, teacher)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.

    Logits are B x classes. T^2 keeps the size of the gradients (Hinton et al. 2015, section 2).
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",  # "mean" would divide by the number of classes too
        log_target=True,
    )
    return temperature**2 * divergence


#: From (student's logits, teacher's logits, temperature) to a scalar.
DISTILLATION: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "logit_mse": lambda student, teacher, temperature: logit_mse(student, teacher),
    "soft_targets": soft_targets,
}


@dataclass(frozen=True)
class CombinedLoss:
    """label_weight * cross entropy + distillation_weight * distillation.

    A term of weight 0 is not computed. The loss of Hinton et al. with weight alpha is
    (label_weight, distillation_weight) = (1 - alpha, alpha). `ask_teacher` limits the second term
    to some examples, see `distillation.ask`.
    """

    distillation: str
    label_weight: float
    distillation_weight: float
    temperature: float
    ask_teacher: Ask = "always"
    ask_entropy: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """A scalar from logits (B x classes), labels (B) and the teacher's logits (B x classes)."""
        terms = []
        if self.label_weight:
            terms.append(self.label_weight * F.cross_entropy(logits, labels))
        if self.distillation != "none" and self.distillation_weight:
            if targets is None:
                raise TrainingError(f"The loss {self.distillation!r} needs the teacher's logits.")
            distil = DISTILLATION[self.distillation]
            own = self._asking(logits, labels, targets)
            terms.append(self.distillation_weight * distil(own, targets, self.temperature))
        if not terms:
            raise TrainingError("The loss has no term: all weights are 0.")
        return sum(terms[1:], terms[0])

    def _asking(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        if self.ask_teacher == "always":
            return logits
        mask = asked(logits, labels, self.ask_teacher, self.ask_entropy)
        return where_asked(logits, targets, mask)


def make_loss(fields: LossFields) -> CombinedLoss:
    """The loss that the settings describe. Raises UnknownNameError for an unknown distillation."""
    if fields.distillation not in ("none", *DISTILLATION):
        raise UnknownNameError("distillation", fields.distillation, ["none", *DISTILLATION])
    return CombinedLoss(
        fields.distillation,
        fields.label_weight,
        fields.distillation_weight,
        fields.temperature,
        fields.ask_teacher,
        fields.ask_entropy,
    )
