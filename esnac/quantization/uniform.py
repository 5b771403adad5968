"""The uniform quantiser: each scaled value goes to a point of an even grid.

linear: the grid 0, 1/(s - 1), ..., 1, so that minimum and maximum of a row are kept. absmax and
absnorm: the grid -1, ..., 0, ..., 1 of an odd number of points; 0 stays 0 and the sign is kept.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from esnac.errors import EsnacError
from esnac.quantization.buckets import (
    ScaleType,
    Scaling,
    check_finite,
    cut,
    fit_scale,
    join,
    scaled,
)
from esnac.quantization.codes import Codes, Rows

#: nearest: to the nearest point, half-way to the even one. stochastic: up with a probability equal
#: to the distance from the lower point in steps, hence without bias.
Rounding = Literal["nearest", "stochastic"]

#: A code is stored in a byte at most.
MOST_LEVELS = 256


def levels_of(bits: float, scaling: Scaling = "linear") -> int:
    """The most levels that `bits` (1 to 8, also fractions) can tell apart: log2(levels) <= bits.

    2.4 and 2.5 give 5 levels, 2.585 gives 6. absmax and absnorm take the largest odd number:
    3 for 2 bits, 15 for 4. Raises EsnacError for fewer than 2 levels (or 3), and for absnorm with
    3: in rows of 256 every weight would become 0. absmax with 3 warns: it has only -1, 0 and 1.
    """
    if not 1 <= bits <= 8:
        raise EsnacError(
            f"bits must be from 1 to 8; got {bits}. For more, leave the weight as it is."
        )
    levels = math.floor(2**bits + 1e-9)
    if scaling == "linear":
        return levels
    levels -= 1 - levels % 2
    if levels < 3 or (levels == 3 and scaling == "absnorm"):
        raise EsnacError(
            f"{bits} bits with {scaling} would round almost every weight to 0; "
            "take linear, or more bits."
        )
    if levels == 3:
        warnings.warn(
            f"{bits} bits with absmax leave -1, 0 and 1; linear has a smaller error.", stacklevel=2
        )
    return levels


def grid(levels: int, scaling: Scaling = "linear", device: torch.device | None = None) -> Tensor:
    """The points in scaled coordinates, ascending, float32. Raises EsnacError for a bad number."""
    lowest, steps = _steps(levels, scaling)
    points = torch.arange(lowest, lowest + levels, dtype=torch.float32, device=device)
    return _divide(points, steps)


@torch.no_grad()
def quantize_uniform(
    w: Tensor,
    *,
    levels: int,
    rows: Rows = "tensor",
    scaling: Scaling = "linear",
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    scales: ScaleType = "float32",
) -> Tensor:
    """The quantised weight, shaped like `w`: to the bit what `decode(encode_uniform(...))` gives.

    Without gradient. float32, also for narrower weights; float64 weights are computed in float64,
    for checks of gradients.
    """
    lowest, steps = _steps(levels, scaling)
    pieces = cut(w, rows)
    scale, offset = fit_scale(pieces, scaling, scales)
    x = _to_grid(scaled(pieces, scale, offset), lowest, steps, levels, rounding, generator)
    value = _divide(x, steps).mul_(scale)
    if offset is not None:
        value.add_(offset)
    return join(value, w.shape)


@torch.no_grad()
def encode_uniform(
    w: Tensor,
    *,
    levels: int,
    rows: Rows = "tensor",
    scaling: Scaling = "linear",
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    scales: ScaleType = "float32",
) -> Codes:
    """The quantised weight as codes (uint8), in the order of `grid`.

    Raises EsnacError for weights that are not finite, and for settings that make no sense.
    """
    lowest, steps = _steps(levels, scaling)
    pieces = cut(w.detach().float(), rows)
    scale, offset = fit_scale(pieces, scaling, scales)
    check_finite(w, scale)
    x = _to_grid(scaled(pieces, scale, offset), lowest, steps, levels, rounding, generator)
    codes = join((x - lowest).to(torch.uint8), w.shape)
    return Codes(codes, grid(levels, scaling, w.device), scale, offset, rows)


def _steps(levels: int, scaling: Scaling) -> tuple[int, int]:
    """Number of the lowest grid point, and steps from u = 0 to u = 1."""
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= MOST_LEVELS:
        raise EsnacError(f"levels must be a whole number from 2 to {MOST_LEVELS}; got {levels!r}.")
    if scaling == "linear":
        return 0, levels - 1
    if levels % 2 == 0:
        raise EsnacError(
            f"{scaling} takes an odd number of levels (0 in the middle); got {levels}."
        )
    return -(levels // 2), levels // 2


def _to_grid(
    u: Tensor,
    lowest: int,
    steps: int,
    levels: int,
    rounding: Rounding,
    generator: torch.Generator | None,
) -> Tensor:
    """Whole numbers lowest .. lowest + levels - 1, as floating point; overwrites `u`."""
    x = u.mul_(steps)
    if rounding == "nearest":
        x.round_()
    elif rounding == "stochastic":
        floor = x.floor()
        device = x.device if generator is None else generator.device
        draw = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype)
        x = floor.add_(draw.to(x.device) < x - floor)
    else:
        raise EsnacError(f"rounding is nearest or stochastic; got {rounding!r}.")
    # Rounded scales, and the 2-norm of a row with one value, let u end a little beyond 1.
    return x.clamp_(lowest, lowest + levels - 1)


def _divide(x: Tensor, steps: int) -> Tensor:
    # By a tensor: CUDA multiplies by the reciprocal of a number, which differs in the last bit.
    return x.div_(torch.full((1,), steps, dtype=x.dtype, device=x.device))
