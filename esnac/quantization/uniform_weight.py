"""Weights on a uniform grid between their own extremes, row by row: quantised distillation.

Polino, Pascanu, Alistarh 2018 (arXiv 1802.05668), section 3: the network computes with the
projection of full-precision master weights, and the optimizer moves the masters by the gradient
taken there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from esnac.quantization._base import WeightQuantizer, require_bits, straight_through
from esnac.quantization.buckets import Scaling, cut, fit_scale
from esnac.quantization.codes import Codes, Rows, row_length
from esnac.quantization.uniform import Rounding, encode_uniform, levels_of, quantize_uniform
from esnac.settings import require

Gradient = Literal["ste", "exact", "clip"]


@dataclass(frozen=True)
class UniformSettings:
    """`rows` are the pieces with a scale of their own; 256 is the paper's bucket.

    `rounding` "stochastic" draws from torch's generator in training mode, as dropout does; in eval
    mode it is nearest. `gradient`: "ste" passes it on as it is; "exact" also differentiates the
    scale and offset of each row; "clip" quantises min(max(w, -1), 1) and passes nothing outside.
    """

    method: ClassVar[str] = "uniform"

    bits: float = 4
    rows: Rows = 256
    scaling: Scaling = "linear"
    rounding: Rounding = "nearest"
    gradient: Gradient = "ste"

    def __post_init__(self) -> None:
        require_bits(self.bits, whole=False)
        row_length((1,), self.rows)
        require(self.scaling in get_args(Scaling), "scaling", _one_of(Scaling), self.scaling)
        require(self.rounding in get_args(Rounding), "rounding", _one_of(Rounding), self.rounding)
        require(self.gradient in get_args(Gradient), "gradient", _one_of(Gradient), self.gradient)

    def build(self, weight: Tensor) -> UniformWeight:
        return UniformWeight(self)


class UniformWeight(WeightQuantizer):
    settings: UniformSettings

    def __init__(self, settings: UniformSettings) -> None:
        super().__init__(settings)
        self.levels = levels_of(settings.bits, settings.scaling)

    def quantize(self, weight: Tensor) -> Tensor:
        s = self.settings
        if s.gradient == "clip":
            weight = weight.clamp(-1, 1)
        value = quantize_uniform(
            weight.detach(),
            levels=self.levels,
            rows=s.rows,
            scaling=s.scaling,
            rounding=s.rounding if self.training else "nearest",
        ).to(weight.dtype)
        if s.gradient == "exact":
            return _WithScale.apply(weight, value, s.rows, s.scaling)
        return straight_through(weight, value)

    def codes(self, weight: Tensor) -> Codes:
        s = self.settings
        if s.gradient == "clip":
            weight = weight.clamp(-1, 1)
        return encode_uniform(weight, levels=self.levels, rows=s.rows, scaling=s.scaling)


class _WithScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, rows: Rows, scaling: Scaling) -> Tensor:
        ctx.save_for_backward(weight, value)
        ctx.rows, ctx.scaling = rows, scaling
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, value = ctx.saved_tensors
        return exact_gradient(grads[0], weight, value, ctx.rows, ctx.scaling), None, None, None


def exact_gradient(
    grad: Tensor, weight: Tensor, value: Tensor, rows: Rows, scaling: Scaling
) -> Tensor:
    """The gradient at `weight` when scales are differentiated, and rounding is straight-through.

    With value = alpha qhat + beta and u = (weight - beta) / alpha in a row, linear scaling:

        grad_i + ([i = argmax] - [i = argmin]) sum_j grad_j (qhat_j - u_j)

    and for scalings without offset d alpha / d w_i in the place of the bracket: the sign of the
    largest weight, or w_i / alpha for the norm.
    """
    pieces, count = cut(weight, rows), weight.numel()
    scale, _ = fit_scale(pieces, scaling)
    error = torch.zeros_like(pieces)
    error.view(-1)[:count] = (grad * (value - weight)).reshape(-1)
    total = (error / scale).sum(dim=1, keepdim=True)
    slope = torch.zeros_like(pieces)
    if scaling == "linear":
        slope.scatter_(1, pieces.argmax(1, keepdim=True), 1.0)
        slope.scatter_add_(1, pieces.argmin(1, keepdim=True), torch.full_like(scale, -1.0))
    elif scaling == "absmax":
        largest = pieces.abs().argmax(1, keepdim=True)
        slope.scatter_(1, largest, pieces.gather(1, largest).sign())
    else:
        slope = pieces / scale
    flat = (slope * total).reshape(-1)
    flat[count - 1] += flat[count:].sum()  # a short last row is filled with copies of its last
    return grad + flat[:count].reshape(weight.shape).to(grad.dtype)


def _one_of(options: Any) -> str:
    return " or ".join(get_args(options))
