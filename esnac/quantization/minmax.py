"""Ranges that are observed, not learned, with zero exact (the quantisers of MicroNet entries).

Weights, per row with n = 2^b - 1 steps (b may be a fraction), the range widened to hold 0:

    scale = n / (max - min),  z = round(scale min),  w_q = (round(scale w - z) + z) / scale

so a pruned weight stays zero. Activations: the same on moving averages of each batch's extremes,
corrected for their start at zero (as Adam's moments are).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from esnac.quantization._base import (
    ActivationQuantizer,
    WeightQuantizer,
    require_bits,
    straight_through,
)
from esnac.quantization.codes import Codes, row_length, spread
from esnac.settings import require


@dataclass(frozen=True)
class MinMaxWeightSettings:
    """2.4 and 2.5 bits give 5 to 6 levels a row."""

    method: ClassVar[str] = "minmax"

    bits: float = 4
    rows: Literal["tensor", "channel"] = "channel"

    def __post_init__(self) -> None:
        require_bits(self.bits, whole=False)
        require(self.rows in ("tensor", "channel"), "rows", "tensor or channel", self.rows)

    def build(self, weight: Tensor) -> MinMaxWeight:
        return MinMaxWeight(self)


@dataclass(frozen=True)
class MinMaxActivationSettings:
    """`decay` of the moving averages, per batch."""

    method: ClassVar[str] = "minmax"

    bits: int = 4
    decay: float = 0.99

    def __post_init__(self) -> None:
        require_bits(self.bits)
        require(0 <= self.decay < 1, "decay", "in [0, 1)", self.decay)

    def build(self) -> MinMaxActivation:
        return MinMaxActivation(self)


class MinMaxWeight(WeightQuantizer):
    settings: MinMaxWeightSettings

    def quantize(self, weight: Tensor) -> Tensor:
        codes, size, offset = self._parts(weight.detach())
        return straight_through(weight, (codes * size + offset).to(weight.dtype))

    def codes(self, weight: Tensor) -> Codes:
        codes, size, offset = (part.float() for part in self._parts(weight.detach()))
        count = math.ceil(2**self.settings.bits - 1) + 1
        table = torch.arange(count, dtype=torch.float32, device=weight.device)
        scales = size.reshape(-1, 1), offset.reshape(-1, 1)
        return Codes(codes.to(torch.uint8), table, *scales, self.settings.rows)

    def _parts(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes from 0, and step and offset that broadcast with them."""
        shape, kind = tuple(weight.shape), self.settings.rows
        rows = weight.reshape(-1, row_length(shape, kind))
        n = 2**self.settings.bits - 1
        low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
        size, zero = _grid(low, high, n)
        size, offset = spread(size, shape, kind), spread(zero * size, shape, kind)
        codes = (weight / size - spread(zero, shape, kind)).round_().clamp_(0, math.ceil(n))
        return codes, size, offset


class MinMaxActivation(ActivationQuantizer):
    settings: MinMaxActivationSettings
    extremes: Tensor
    batches: Tensor

    def __init__(self, settings: MinMaxActivationSettings) -> None:
        super().__init__(settings)
        self.register_buffer("extremes", torch.zeros(2))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def observe(self, x: Tensor) -> None:
        met = self.span(x).to(self.extremes)
        if met.any():
            self.extremes.lerp_(met, 1 - self.settings.decay)
            self.batches.add_(1)

    def recall(self) -> bool:
        return bool(self.batches > 0)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """Of the inputs so far; it holds 0."""
        corrected = self.extremes / (1 - self.settings.decay**self.batches)
        return corrected[0].clamp_max(0), corrected[1].clamp_min(0)

    @property
    def zero_point(self) -> int:
        """The step from which zero is counted, 0 or less; 0 before any range is known."""
        if not self.recall():
            return 0
        return int(_grid(*self.range, 2**self.settings.bits - 1)[1])

    def quantize(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        n = 2**self.settings.bits - 1
        size, zero = _grid(*self.range, n)
        value = (x.detach() / size).clamp_(zero, zero + n).round_().mul_(size)
        # The gradient passes inside the range only.
        return straight_through(x.clamp(zero * size, (zero + n) * size), value)


def _grid(low: Tensor, high: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """The distance of two steps, and the number (zero or below) of the step that low falls on."""
    size = (high - low) / n
    size = torch.where(size == 0, torch.ones_like(size), size)
    return size, (low / size).round()
