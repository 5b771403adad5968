"""A tensor cut into rows, and the scale of each row.

    v = u * scale + offset

where u lies in [0, 1] (linear: offset is the row's minimum) or in [-1, 1] (absmax, absnorm: no
offset). One large weight then spoils the steps of its own row only. Scales are float32, also those
of bfloat16 weights: rounded to bfloat16 they would be off by more than half a step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from esnac.errors import EsnacError
from esnac.quantization.codes import Rows, row_length

#: linear: u from 0 at the row's minimum to 1 at its maximum. absmax, absnorm: v divided by the
#: row's largest magnitude or by its 2-norm.
Scaling = Literal["linear", "absmax", "absnorm"]
SCALINGS: tuple[Scaling, ...] = ("linear", "absmax", "absnorm")

#: How a scale is kept: float16 halves the cost of short buckets.
ScaleType = Literal["float32", "float16"]


def cut(w: Tensor, rows: Rows) -> Tensor:
    """`w` flattened as R x length, float32 (float64 stays).

    A short last row is filled with copies of its last value, which change neither its minimum nor
    its maximum. A view where possible.
    """
    flat = w.reshape(-1) if w.dtype == torch.float64 else w.reshape(-1).float()
    # A tensor that is shorter than its bucket is one row of its own length.
    length = min(row_length(tuple(w.shape), rows), max(flat.numel(), 1))
    missing = -flat.numel() % length
    if missing:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    return flat.reshape(-1, length)


def join(pieces: Tensor, shape: torch.Size) -> Tensor:
    """The tensor of `shape` that `cut` gave `pieces` of."""
    return pieces.reshape(-1)[: shape.numel()].reshape(shape)


def fit_scale(
    pieces: Tensor, scaling: Scaling, kept_as: ScaleType = "float32"
) -> tuple[Tensor, Tensor | None]:
    """Scale and offset (R x 1 each; offset None except for linear) of rows R x length.

    A row of equal values (linear) or of zeros gets scale 1, and is then represented exactly. Any
    other range counts, however small beside 1. Raises EsnacError for an unknown scaling, or
    when float16 cannot hold a scale.
    """
    offset = None
    if scaling == "linear":
        offset = pieces.amin(1, keepdim=True)
        scale = pieces.amax(1, keepdim=True) - offset
    elif scaling in ("absmax", "absnorm"):
        scale = largest = pieces.abs().amax(1, keepdim=True)
        if scaling == "absnorm":  # divided first: squares of 1e30 overflow, those of 1e-30 vanish
            scale = largest * (pieces / _or_one(largest)).norm(dim=1, keepdim=True)
    else:
        raise EsnacError(f"scaling is one of {', '.join(SCALINGS)}; got {scaling!r}.")
    if kept_as == "float16":
        scale, offset = _as_half(scale), None if offset is None else _as_half(offset)
    return _or_one(scale), offset


def scaled(pieces: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """u of rows R x length; a new tensor."""
    return pieces / scale if offset is None else (pieces - offset).div_(scale)


def check_finite(w: Tensor, scale: Tensor) -> None:
    """Raises EsnacError for weights whose scale is infinite or no number."""
    if not torch.isfinite(scale).all():
        raise EsnacError(
            f"Weights of shape {tuple(w.shape)} hold infinities, NaN or a range beyond float32; "
            "nothing to quantise. Train with a smaller learning rate."
        )


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _as_half(values: Tensor) -> Tensor:
    half = values.half().to(values.dtype)
    lost = (half.isinf() & ~values.isinf()) | ((half - values).abs() > values.abs() / 1024)
    if lost.any():
        raise EsnacError(
            "Scales beyond the range of float16 (6e-5 to 65504); keep them as float32."
        )
    return half
