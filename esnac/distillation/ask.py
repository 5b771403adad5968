"""When to ask the teacher: of which examples a student learns from it (Polino et al. 2018).

always   all of them
entropy  where the student's prediction has an entropy above a cutoff
random   with probability entropy / log2(classes)
wrong    where the student's largest logit is not the label's
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Ask = Literal["always", "entropy", "random", "wrong"]


def entropy(logits: Tensor) -> Tensor:
    """Bits, B, in [0, log2(classes)], of softmax(logits), B x classes."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(2)


@torch.no_grad()
def asked(
    logits: Tensor,
    labels: Tensor,
    ask: Ask,
    cutoff: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """B, bool: whether the teacher is asked; from the student's logits, B x classes, and labels.

    `cutoff` in bits is of "entropy". "random" draws from `generator`, None being torch's own, which
    a training seeds anew for every epoch, as for dropout.
    """
    if ask == "entropy":
        return entropy(logits) > cutoff
    if ask == "random":
        chance = entropy(logits) / math.log2(logits.shape[1])
        draws = torch.rand(chance.shape, generator=generator, device=chance.device)
        return draws < chance
    if ask == "wrong":
        return logits.argmax(dim=1) != labels
    return torch.ones_like(labels, dtype=torch.bool)


def where_asked(logits: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The student's logits, with the teacher's where it is not asked.

    A distance of these to the teacher's logits is zero there, and so is its gradient; a mean over
    the batch still counts all examples.
    """
    return torch.where(mask.unsqueeze(1), logits, teacher.to(logits.dtype))
