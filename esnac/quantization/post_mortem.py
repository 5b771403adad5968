"""Rounding a network after its training, the baseline of all training with quantisers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esnac.quantization.attach import Plan, attach, calibrate, detach
from esnac.quantization.recalibration import recalibrate
from esnac.runtime import evaluating


@dataclass(frozen=True)
class PostMortem:
    """What a judge finds of the rounded network, and with batch norm's statistics gathered anew."""

    plain: float
    recalibrated: float


def post_mortem(
    network: nn.Module,
    plan: Plan,
    judge: Callable[[nn.Module], float],
    batches: Sequence[Tensor],
) -> PostMortem:
    """Judges `network` under the quantisers of `plan`; it is left as it was, to the bit.

    `batches` of training inputs start the quantisers of activations and give the statistics. These
    explain much of what training with few bits gains, so a comparison needs both figures.
    """
    with quantized(network, plan, batches):
        plain = judge(network)
        recalibrate(network, batches)
        return PostMortem(plain, judge(network))


@contextmanager
def quantized(network: nn.Module, plan: Plan, batches: Sequence[Tensor]) -> Iterator[None]:
    """Eval mode and the quantisers of `plan` inside; afterwards tensors and modes are as before."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with evaluating(network):
        attach(network, plan)
        try:
            if plan.activations:
                calibrate(network, batches)
            yield
        finally:
            detach(network, bake=False)
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(before[name])
