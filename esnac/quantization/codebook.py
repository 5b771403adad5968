"""The quantiser with free points: each scaled value goes to the nearest point of a codebook.

The points (one vector per tensor) live in the scaled coordinates of `buckets`, so rows of different
range share them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from esnac.errors import EsnacError
from esnac.quantization.buckets import Scaling, check_finite, cut, fit_scale, join, scaled
from esnac.quantization.codes import Codes, Rows
from esnac.quantization.uniform import MOST_LEVELS, grid

#: uniform: the even grid. quantile: equally many values from point to point, both ends included.
#: kmeans: least squared error, by Lloyd's iterations.
Start = Literal["uniform", "quantile", "kmeans"]

LLOYD_STEPS = 30


def nearest_points(u: Tensor, points: Tensor) -> Tensor:
    """Number (int64) of the point nearest to each value; half-way between two, that of the upper.

    The points may be in any order.
    """
    ascending, order = points.detach().sort()
    middles = (ascending[1:] + ascending[:-1]) / 2
    return order[torch.bucketize(u.detach().contiguous(), middles, right=True)]


def encode_points(w: Tensor, points: Tensor, rows: Rows, scaling: Scaling = "linear") -> Codes:
    """The weight as codes (uint8) of the points in ascending order, which are its table.

    Raises EsnacError for weights that are not finite or a number of points that no byte can tell.
    """
    if not 1 <= points.numel() <= MOST_LEVELS or not torch.isfinite(points).all():
        raise EsnacError(f"Points must be 1 to {MOST_LEVELS} finite numbers; got {points.numel()}.")
    table = points.detach().float().reshape(-1).sort().values
    pieces = cut(w.detach().float(), rows)
    scale, offset = fit_scale(pieces, scaling)
    check_finite(w, scale)
    codes = nearest_points(scaled(pieces, scale, offset), table).to(torch.uint8)
    return Codes(join(codes, w.shape), table, scale, offset, rows)


def scaled_values(w: Tensor, rows: Rows, scaling: Scaling = "linear") -> Tensor:
    """All values of `w` in scaled coordinates, flat, without the filling of a short last row."""
    pieces = cut(w.detach(), rows)
    return scaled(pieces, *fit_scale(pieces, scaling)).reshape(-1)[: w.numel()]


def start_points(u: Tensor, levels: int, start: Start, scaling: Scaling = "linear") -> Tensor:
    """Points (levels, float32, ascending) to begin with, for the scaled values `u` of a tensor.

    Where few distinct values meet many levels, points coincide. Raises EsnacError.
    """
    if start == "uniform":
        return grid(levels, scaling, u.device)
    if not 1 <= levels <= MOST_LEVELS or not u.numel():
        raise EsnacError(f"Points are 1 to {MOST_LEVELS}, of one value or more; got {levels}.")
    ascending = u.detach().reshape(-1).double().sort().values
    if start == "quantile":
        shares = torch.linspace(0, 1, levels, dtype=torch.float64, device=u.device)
        return _quantiles(ascending, shares).float()
    if start == "kmeans":
        shares = (torch.arange(levels, dtype=torch.float64, device=u.device) + 0.5) / levels
        return _lloyd(ascending, _quantiles(ascending, shares)).float()
    raise EsnacError(f"start is uniform, quantile or kmeans; got {start!r}.")


def _quantiles(ascending: Tensor, shares: Tensor) -> Tensor:
    """Between two values by a straight line, as `torch.quantile`, which stops at 2**24 values."""
    place = shares * (ascending.numel() - 1)
    below = place.floor().long()
    above = (below + 1).clamp_(max=ascending.numel() - 1)
    return torch.lerp(ascending[below], ascending[above], place - below)


def _lloyd(ascending: Tensor, points: Tensor) -> Tensor:
    """Each point to the mean of the values nearest to it, LLOYD_STEPS times; sums by prefix."""
    sums = torch.cat([ascending.new_zeros(1), ascending.cumsum(0)])
    ends = sums.new_tensor([0, ascending.numel()], dtype=torch.long)
    for _ in range(LLOYD_STEPS):
        inner = torch.searchsorted(ascending, (points[1:] + points[:-1]) / 2)
        borders = torch.cat([ends[:1], inner, ends[1:]])
        counts = borders.diff()
        means = (sums[borders[1:]] - sums[borders[:-1]]) / counts.clamp(min=1)
        points = torch.where(counts > 0, means, points)
    return points
