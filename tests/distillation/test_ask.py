from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from esnac.distillation.ask import asked, entropy, where_asked
from esnac.distillation.losses import DISTILLATION, CombinedLoss

# Even over 4 classes, over 2 of them, and certain: 2, 1 and 0 bits.
LOGITS = torch.tensor([[5.0, 5, 5, 5], [3, 3, -200, -200], [-200, 300, -200, -200]])
LABELS = torch.tensor([0, 2, 2])


def test_entropy_in_bits() -> None:
    assert entropy(LOGITS).tolist() == pytest.approx([2, 1, 0])


@pytest.mark.parametrize(
    ("ask", "cutoff", "expected"),
    [
        ("always", 0, [True, True, True]),
        ("entropy", 0.5, [True, True, False]),
        ("entropy", 1.5, [True, False, False]),
        ("wrong", 0, [False, True, True]),
    ],
)
def test_who_is_asked(ask: str, cutoff: float, expected: list[bool]) -> None:
    assert asked(LOGITS, LABELS, ask, cutoff).tolist() == expected  # type: ignore[arg-type]


def test_at_random_the_chance_is_the_share_of_the_largest_entropy() -> None:
    logits, labels = LOGITS.repeat_interleave(4000, 0), LABELS.repeat_interleave(4000)
    found = asked(logits, labels, "random", generator=torch.Generator().manual_seed(0))
    shares = found.view(3, 4000).float().mean(1).tolist()
    assert (shares[0], shares[2]) == (1, 0)
    assert shares[1] == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(4000))
    again = asked(logits, labels, "random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@pytest.mark.parametrize("distillation", list(DISTILLATION))
def test_who_is_not_asked_gets_no_gradient_and_still_counts(distillation: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, requires_grad=True)
    teacher, mask = torch.randn(6, 4), torch.tensor([True, False, True, True, False, False])
    distil = DISTILLATION[distillation]
    loss = distil(where_asked(logits, teacher, mask), teacher, 2.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(distil(logits[mask], teacher[mask], 2.0).item() / 2)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_the_loss_asks() -> None:
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(8, 4), torch.randn(8, 4), torch.arange(8) % 4
    wrong = logits.argmax(1) != labels
    assert 0 < wrong.sum() < 8
    loss = CombinedLoss("logit_mse", 0.3, 0.7, 1.0, "wrong")
    squares = (logits - teacher).square().mean(1)
    expected = 0.3 * F.cross_entropy(logits, labels) + 0.7 * (squares * wrong).mean()
    assert loss(logits, labels, teacher).item() == pytest.approx(expected.item())
