"""A quantised tensor as integers, and back: what all quantisers agree on.

    value = table[code] * scale + offset

with one scale and offset per row of the flattened tensor, and zero under the mask. This is, to the
bit, what the network computes with, so a file that keeps the codes keeps its accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from esnac.errors import EsnacError

#: How a flattened tensor is cut: whole, by its first dimension, or into buckets of so many values.
Rows = Literal["tensor", "channel"] | int


@dataclass(frozen=True)
class Codes:
    """A tensor of integer `codes` (any shape), each in 0 .. len(table) - 1.

    `table` (levels, float32): values in scaled coordinates. `scale` and `offset` (R x 1, float32;
    offset None: 0): one pair per row. `keep` (bool, shaped like codes; None: all): elsewhere the
    value is 0.
    """

    codes: Tensor
    table: Tensor
    scale: Tensor
    offset: Tensor | None
    rows: Rows
    keep: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (count_rows(tuple(self.codes.shape), self.rows), 1)
        for part in (self.scale, self.offset):
            if part is not None and tuple(part.shape) != expected:
                raise EsnacError(
                    f"Scales must be {expected}, one per row; got {tuple(part.shape)}."
                )

    @property
    def levels(self) -> int:
        return len(self.table)


def row_length(shape: tuple[int, ...], rows: Rows) -> int:
    """Values in a row of a tensor of this shape; the last row may be shorter."""
    count = torch.Size(shape).numel()
    if rows == "tensor":
        return max(count, 1)
    if rows == "channel":
        return max(count // max(shape[0], 1), 1) if shape else 1
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise EsnacError(f'rows must be "tensor", "channel" or a bucket size from 1; got {rows!r}.')
    return rows


def count_rows(shape: tuple[int, ...], rows: Rows) -> int:
    return -(-torch.Size(shape).numel() // row_length(shape, rows))


def spread(per_row: Tensor, shape: tuple[int, ...], rows: Rows) -> Tensor:
    """One value per element of a tensor of `shape`, from one per row (R x 1)."""
    if rows == "tensor":
        return per_row.reshape([1] * len(shape))
    if rows == "channel" and shape:
        return per_row.reshape(-1, *[1] * (len(shape) - 1))
    repeated = per_row.reshape(-1).repeat_interleave(row_length(shape, rows))
    return repeated[: torch.Size(shape).numel()].reshape(shape)


def decode(codes: Codes) -> Tensor:
    """The values, float32, shaped like the codes."""
    shape = tuple(codes.codes.shape)
    value = codes.table[codes.codes.long()] * spread(codes.scale, shape, codes.rows)
    if codes.offset is not None:
        value = value + spread(codes.offset, shape, codes.rows)
    return value if codes.keep is None else torch.where(codes.keep, value, value.new_zeros(()))
