"""Activations below a learned bound (PACT; Choi et al. 2018, arXiv 1805.06085).

    y = round(clamp(x, 0, alpha) n / alpha) alpha / n,  n = 2^b - 1

The gradient passes to x inside the range and to alpha from what lies above. Where values are
negative the range is -alpha .. alpha with n = 2^(b-1) - 1, which the paper leaves open. Weights go
with it as in DoReFa.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.quantization._base import ActivationQuantizer, require_bits
from esnac.quantization.lsq import pass_inside, positive, to_grid
from esnac.settings import require


@dataclass(frozen=True)
class PACTSettings:
    """`start`: alpha before training; None: the largest magnitude of the first batch. `signed`
    None: as the first batch is."""

    method: ClassVar[str] = "pact"

    bits: int = 4
    start: float | None = None
    signed: bool | None = None

    def __post_init__(self) -> None:
        require_bits(self.bits, least=2 if self.signed else 1)
        require(self.start is None or self.start > 0, "start", "above 0", self.start)

    def build(self) -> PACTActivation:
        return PACTActivation(self)


class PACTActivation(ActivationQuantizer):
    settings: PACTSettings
    signed: Tensor

    def __init__(self, settings: PACTSettings) -> None:
        super().__init__(settings)
        self.raw_bound = nn.Parameter(torch.zeros(()))  # zero: not started
        self.register_buffer("signed", torch.tensor(bool(settings.signed)))
        self.low, self.high = 0, 2**settings.bits - 1

    @property
    def bound(self) -> Tensor:
        """alpha, positive."""
        return positive(self.raw_bound)

    def observe(self, x: Tensor) -> None:
        if self._known or self.recall():
            return
        span = self.span(x)
        if not span.any():
            return
        if self.settings.signed is None:
            self.signed.fill_(bool(span[0] < 0))
        start = span.abs().amax() if self.settings.start is None else self.settings.start
        self.raw_bound.fill_(start)

    def recall(self) -> bool:
        bits, signed = self.settings.bits, bool(self.signed)
        if signed and bits < 2:
            raise EsnacError(
                f"The input of layer {self.layer!r} has negative values, for which one bit is too "
                "few. Use two bits or more there."
            )
        self.high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        self.low = -self.high if signed else 0
        return bool(self.raw_bound != 0)

    def quantize(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return _PACT.apply(x, self.bound, self.low, self.high)


class _PACT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, bound)
        ctx.signed = low < 0
        return to_grid(x, bound / high, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, bound = ctx.saved_tensors
        (grad,) = grads
        low = -bound if ctx.signed else torch.zeros_like(bound)
        above = (grad * (x >= bound)).sum()
        if ctx.signed:
            above = above - (grad * (x <= low)).sum()
        return pass_inside(grad, x, low, bound), above, None, None
