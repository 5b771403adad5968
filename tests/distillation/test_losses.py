from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from esnac.distillation.losses import logit_mse, make_loss, soft_targets
from esnac.errors import TrainingError, UnknownNameError

STUDENT = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
LABEL = torch.tensor([2])


@dataclass(frozen=True)
class Fields:
    distillation: str = "none"
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    temperature: float = 1.0
    ask_teacher: str = "always"
    ask_entropy: float = 0.0


# Worked out from the formula with Python's floats.
@pytest.mark.parametrize(
    ("temperature", "divergence", "total"), [(1, 1.6851240, 1.5573722), (3, 0.2378684, 1.9674949)]
)
def test_soft_targets(temperature: float, divergence: float, total: float) -> None:
    value = soft_targets(STUDENT, TEACHER, temperature) / temperature**2
    assert value.item() == pytest.approx(divergence, abs=1e-7)
    alpha = 0.9
    loss = make_loss(Fields("soft_targets", 1 - alpha, alpha, temperature))  # type: ignore[arg-type]
    assert loss(STUDENT, LABEL, TEACHER).item() == pytest.approx(total, abs=1e-7)


def test_soft_targets_are_a_mean_over_the_batch_not_over_classes() -> None:
    one = soft_targets(STUDENT, TEACHER, 2.0)
    many = soft_targets(STUDENT.repeat(5, 1), TEACHER.repeat(5, 1), 2.0)
    assert many.item() == pytest.approx(one.item())


def test_cross_entropy() -> None:
    loss = make_loss(Fields())  # type: ignore[arg-type]
    assert loss(STUDENT, LABEL, None).item() == pytest.approx(0.4076060, abs=1e-7)


def test_logit_mse() -> None:
    assert logit_mse(STUDENT, TEACHER).item() == pytest.approx((4 + 1 + 9) / 3)


def test_terms_add_by_their_weights() -> None:
    loss = make_loss(Fields("logit_mse", 0.5, 2.0))  # type: ignore[arg-type]
    expected = 0.5 * F.cross_entropy(STUDENT, LABEL) + 2 * F.mse_loss(STUDENT, TEACHER)
    assert loss(STUDENT, LABEL, TEACHER).item() == pytest.approx(expected.item())


def test_a_term_of_weight_zero_is_left_out() -> None:
    loss = make_loss(Fields("logit_mse", label_weight=0.0))  # type: ignore[arg-type]
    no_label = torch.tensor([-1])  # would raise in the cross entropy
    assert loss(STUDENT, no_label, TEACHER).item() == pytest.approx(14 / 3)


def test_errors() -> None:
    with pytest.raises(UnknownNameError, match="logit_mse"):
        make_loss(Fields("logit_mes"))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="teacher"):
        make_loss(Fields("logit_mse"))(STUDENT, LABEL, None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no term"):
        make_loss(Fields(label_weight=0.0))(STUDENT, LABEL, None)  # type: ignore[arg-type]
