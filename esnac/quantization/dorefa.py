"""Weights through tanh and fixed ranges (Zhou et al. 2016, arXiv 1606.06160), and two variants.

With t = tanh(w) and n = 2^b - 1 steps:

    classic   2 round(n (t / (2 max|t|) + 1/2)) / n - 1, in [-1, 1]: the paper
    mean      s (round(n (c + 1/2)) / n - 1/2), c = clamp(t / s, -1/2, 1/2), s = 2 mean|t|
    row       the same with t less its mean over the row (output), s = 2 max|t| of the row

"mean" and "row" are what Arch-Net (arXiv 2111.01135) trains convolutions and its last layer with.
They treat s as a constant and pass the gradient of rounding and clamping straight through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from esnac.quantization._base import (
    ActivationQuantizer,
    WeightQuantizer,
    require_bits,
    straight_through,
)
from esnac.quantization.codes import Codes, Rows
from esnac.quantization.lsq import pass_inside
from esnac.settings import require

Variant = Literal["classic", "mean", "row"]


@dataclass(frozen=True)
class DoReFaWeightSettings:
    method: ClassVar[str] = "dorefa"

    bits: int = 4
    variant: Variant = "mean"

    def __post_init__(self) -> None:
        require_bits(self.bits)
        known = get_args(Variant)
        require(self.variant in known, "variant", " or ".join(known), self.variant)

    def build(self, weight: Tensor) -> DoReFaWeight:
        return DoReFaWeight(self)


@dataclass(frozen=True)
class DoReFaActivationSettings:
    """`gain` scales the input to the range [0, 1] that is kept; 0.1 suits what a batch norm gives
    (Arch-Net); the paper, whose activations are bounded already, has 1."""

    method: ClassVar[str] = "dorefa"

    bits: int = 4
    gain: float = 0.1

    def __post_init__(self) -> None:
        require_bits(self.bits)
        require(self.gain > 0, "gain", "above 0", self.gain)

    def build(self) -> DoReFaActivation:
        return DoReFaActivation(self)


class DoReFaWeight(WeightQuantizer):
    settings: DoReFaWeightSettings

    def quantize(self, weight: Tensor) -> Tensor:
        t = squash(weight, self.settings.variant)
        steps, scale = _steps(t.detach(), self.settings)
        value = _grid(steps, self.settings) * scale
        if self.settings.variant == "classic":
            t = t / _largest(t)  # the paper differentiates the maximum too
        return straight_through(t, value.to(weight.dtype))

    def codes(self, weight: Tensor) -> Codes:
        s = self.settings
        steps, scale = _steps(squash(weight.detach(), s.variant), s)
        table = torch.arange(2**s.bits, dtype=torch.float32, device=weight.device)
        rows: Rows = "channel" if s.variant == "row" else "tensor"
        scale = scale.float().reshape(-1, 1)
        return Codes(steps.to(torch.uint8), _grid(table, s), scale, None, rows)


class DoReFaActivation(ActivationQuantizer):
    """round(n clamp(gain x, 0, 1)) / n: the scale of the input is gone."""

    settings: DoReFaActivationSettings

    def quantize(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return _Unit.apply(x, self.settings.gain, 2**self.settings.bits - 1)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float, n: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gain = gain
        return (x * gain).clamp_(0, 1).mul_(n).round_().div_(n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = x.new_zeros(()), x.new_tensor(1 / ctx.gain)
        return pass_inside(grads[0], x, low, high).mul_(ctx.gain), None, None


def squash(weight: Tensor, variant: Variant) -> Tensor:
    """tanh(w), for "row" less its mean over each row of the first dimension."""
    t = weight.tanh()
    if variant != "row":
        return t
    return t - t.flatten(1).mean(1).reshape(-1, *[1] * (t.dim() - 1))


def _steps(t: Tensor, settings: DoReFaWeightSettings) -> tuple[Tensor, Tensor]:
    """Whole numbers in 0 .. n, and the scale: one, or one per row shaped to broadcast."""
    if settings.variant == "classic":
        width, scale = 2 * _largest(t), t.new_ones(())
    elif settings.variant == "mean":
        width = scale = (2 * t.abs().mean()).clamp_min(_TINY)
    else:
        largest = t.abs().flatten(1).amax(1).clamp_min(_TINY)
        width = scale = 2 * largest.reshape(-1, *[1] * (t.dim() - 1))
    n = 2**settings.bits - 1
    return ((t / width).clamp_(-0.5, 0.5).add_(0.5)).mul_(n).round_(), scale


def _grid(steps: Tensor, settings: DoReFaWeightSettings) -> Tensor:
    n = 2**settings.bits - 1
    return 2 * steps / n - 1 if settings.variant == "classic" else steps / n - 0.5


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax().clamp_min(_TINY)


#: Keeps all-zero weights from being divided by zero.
_TINY = 1e-12
