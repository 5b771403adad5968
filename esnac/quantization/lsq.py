"""Learned step sizes (Esser et al. 2020, arXiv 1902.08153).

    v_q = round(clamp(v / s, -Q_n, Q_p)) s

with Q_n = 2^(b-1), Q_p = 2^(b-1) - 1, or 0 and 2^b - 1 where no value is negative. The gradient
passes to v inside the range, and to s as round(v/s) - v/s inside, -Q_n or Q_p outside, times
1 / sqrt(N Q_p). N is the number of weights per step, or of features per example.

A step is the magnitude of a trained number, so it is never negative however noisy the training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.quantization._base import ActivationQuantizer, WeightQuantizer, require_bits
from esnac.quantization.codes import Codes, row_length, spread
from esnac.settings import require

#: A step is never smaller: dividing by it stays finite.
SMALLEST = 1e-8


@dataclass(frozen=True)
class LSQWeightSettings:
    """`rows`: one step per "tensor" (the paper) or per output "channel"."""

    method: ClassVar[str] = "lsq"

    bits: int = 4
    rows: Literal["tensor", "channel"] = "tensor"

    def __post_init__(self) -> None:
        require_bits(self.bits, least=2)
        require(self.rows in ("tensor", "channel"), "rows", "tensor or channel", self.rows)

    def build(self, weight: Tensor) -> LSQWeight:
        return LSQWeight(self, weight)


@dataclass(frozen=True)
class LSQActivationSettings:
    """`signed` None: as the first batch is."""

    method: ClassVar[str] = "lsq"

    bits: int = 4
    signed: bool | None = None

    def __post_init__(self) -> None:
        require_bits(self.bits, least=2 if self.signed else 1)

    def build(self) -> LSQActivation:
        return LSQActivation(self)


class LSQWeight(WeightQuantizer):
    """The steps start at 2 mean|w| / sqrt(Q_p) of the weight, pruned zeros left out of the mean."""

    settings: LSQWeightSettings

    def __init__(self, settings: LSQWeightSettings, weight: Tensor) -> None:
        super().__init__(settings)
        self.low, self.high = limits(settings.bits, signed=True)
        length = row_length(tuple(weight.shape), settings.rows)
        rows = weight.detach().float().reshape(-1, length)
        share = (rows != 0).float().mean(dim=1).clamp_min(1 / length)
        self.raw_step = nn.Parameter(first_step(rows / share[:, None], self.high))

    @property
    def step(self) -> Tensor:
        """One positive step per row (R)."""
        return positive(self.raw_step)

    def quantize(self, weight: Tensor) -> Tensor:
        step = spread(self.step, tuple(weight.shape), self.settings.rows)
        scale = 1 / math.sqrt(weight.numel() / self.raw_step.numel() * self.high)
        return _LSQ.apply(weight, step, self.low, self.high, scale)

    def codes(self, weight: Tensor) -> Codes:
        step = self.step.detach()
        spaced = spread(step, tuple(weight.shape), self.settings.rows)
        steps = (weight.detach() / spaced).clamp_(self.low, self.high).round_()
        table = torch.arange(self.low, self.high + 1, dtype=torch.float32, device=weight.device)
        codes = (steps - self.low).to(torch.uint8)
        return Codes(codes, table, step.reshape(-1, 1), None, self.settings.rows)


class LSQActivation(ActivationQuantizer):
    """One step per tensor; starts at 2 mean|x| / sqrt(Q_p) of the first batch with a value in it.

    Computes in float32 at least, whatever autocast does around it.
    """

    settings: LSQActivationSettings
    signed: Tensor

    def __init__(self, settings: LSQActivationSettings) -> None:
        super().__init__(settings)
        self.raw_step = nn.Parameter(torch.zeros(()))  # zero: not started
        self.register_buffer("signed", torch.tensor(bool(settings.signed)))
        self.low, self.high = limits(settings.bits, bool(settings.signed))

    @property
    def step(self) -> Tensor:
        return positive(self.raw_step)

    def observe(self, x: Tensor) -> None:
        if self._known or self.recall():
            return
        span = self.span(x)
        if not span.any():
            return
        if self.settings.signed is None:
            self.signed.fill_(bool(span[0] < 0))
        _, high = self._limits()
        mean = x.float().abs().mean().double()
        count = torch.full_like(mean, x.numel())
        total, count = self.group.sum(torch.stack([count * mean, count]))
        self.raw_step.copy_(first_step((total / count).float().reshape(1, 1), high).reshape(()))

    def recall(self) -> bool:
        self.low, self.high = self._limits()
        return bool(self.raw_step != 0)

    def quantize(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        features = x.numel() / max(x.shape[0], 1)
        return _LSQTensor.apply(
            x, self.step, self.low, self.high, 1 / math.sqrt(features * self.high)
        )

    def _limits(self) -> tuple[int, int]:
        signed = bool(self.signed)
        if signed and self.settings.bits < 2:
            raise EsnacError(
                f"The input of layer {self.layer!r} has negative values, for which one bit leaves "
                "no step upwards. Use two bits or more there."
            )
        return limits(self.settings.bits, signed)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest code: -Q_n and Q_p."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def first_step(rows: Tensor, high: int) -> Tensor:
    """2 mean|v| / sqrt(Q_p) of each row (R x k); 1 for a row of zeros."""
    step = 2 * rows.abs().mean(dim=1) / math.sqrt(high)
    return torch.where(step == 0, torch.ones_like(step), step)


def positive(raw: Tensor) -> Tensor:
    """|raw|, at least SMALLEST."""
    return raw.abs().clamp_min(SMALLEST)


class _LSQ(torch.autograd.Function):
    """Any shape of steps that broadcasts with the weight: for weights, which are few."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, low: int, high: int, scale: float
    ) -> Tensor:
        steps = weight / step
        ctx.save_for_backward(steps)
        ctx.low, ctx.high, ctx.scale, ctx.shape = low, high, scale, step.shape
        return steps.clamp(low, high).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (steps,) = ctx.saved_tensors
        (grad,) = grads
        inside = (steps > ctx.low) & (steps < ctx.high)
        clamped = steps.clamp(ctx.low, ctx.high)
        slope = torch.where(inside, clamped.round() - steps, clamped)
        to_step = (grad * slope).sum_to_size(ctx.shape) * ctx.scale
        return grad * inside, to_step, None, None, None


class _LSQTensor(torch.autograd.Function):
    """One step for a large tensor, in as few passes over the memory as can be.

    Saves its input and output, which its neighbours save too. The gradient of the step is
    sum(g (x_q - x)) / s inside and sum(g x_q) / s outside, so two inner products give it:
    (<g, x_q> - <g_x, x>) / s, where g_x is the gradient to the input, zero outside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        value = to_grid(x, step, low, high)
        ctx.save_for_backward(x, step, value)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, step, value = ctx.saved_tensors
        (grad,) = grads
        if grad.stride() != x.stride():  # one copy here, or one in each of the passes below
            grad = torch.empty_like(x).copy_(grad)
        to_input = pass_inside(grad, x, step * ctx.low, step * ctx.high)
        total = inner(grad, value) - inner(to_input, x)
        return to_input, total * ctx.scale / step, None, None, None


def to_grid(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """round(clamp(x / step, low, high)) * step; a new tensor.

    In place after the division: torch.fake_quantize_per_tensor_affine does the same in one kernel
    that is not vectorised (1 M values on one thread of an AVX2 processor: 11 ms, this 0.4 ms).
    """
    return torch.div(x, step).clamp_(low, high).round_().mul_(step)


def pass_inside(grad: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`grad` where low < x < high, else 0."""
    if grad.device.type == "cpu":  # one pass; on a GPU the numbers would have to come here first
        backward = torch.ops.aten.hardtanh_backward
        return backward(grad, x, low.item(), high.item())
    return grad * ((x > low) & (x < high))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of a * b (same shape), without an intermediate where memory formats agree."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))
