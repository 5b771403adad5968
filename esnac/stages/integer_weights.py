"""Codes of a quantised student as the integers that ONNX packs.

    table[code] * scale = integer * (unit * scale)

for tables whose values are whole multiples of a unit: LSQ, DoReFa, any evenly spaced levels around
zero. Learned points and levels with an offset have no such form.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from esnac.deployment.onnx_weights import OPSETS, IntegerWeight
from esnac.errors import EsnacError
from esnac.quantization.codes import Codes

#: How far a value of a table may be from a whole multiple, in units.
_TOLERANCE = 1e-4

_WAY_OUT = "Quantise per tensor or channel with levels around zero (lsq), or export to onnx."


def integer_weight(name: str, codes: Codes, least_bits: int) -> IntegerWeight:
    """The weight `name` in the fewest bits that ONNX has for its levels, `least_bits` or more.

    Raises EsnacError for codes that are no multiples of a scale per tensor or channel.
    """
    if codes.rows not in ("tensor", "channel"):
        raise EsnacError(f"Weight {name!r} has a scale per {codes.rows} values. {_WAY_OUT}")
    if codes.offset is not None and codes.offset.any():
        raise EsnacError(f"Weight {name!r} has levels with an offset. {_WAY_OUT}")
    found = integer_table(codes.table)
    if found is None:
        raise EsnacError(f"The levels of weight {name!r} are not evenly spaced. {_WAY_OUT}")
    integers, unit = found
    values = integers[codes.codes.long().cpu()]
    if codes.keep is not None:
        values = torch.where(codes.keep.cpu(), values, 0)
    bits = _fewest_bits(integers, least_bits)
    if bits is None:
        reach = f"{integers.min().item()} to {integers.max().item()}"
        raise EsnacError(f"The levels of weight {name!r}, {reach}, need over 8 bits. {_WAY_OUT}")
    scale = (codes.scale.double().cpu().reshape(-1) * unit).float()
    return IntegerWeight(values.to(torch.int8).numpy(), scale.numpy().astype(np.float32), bits)


def integer_table(table: Tensor) -> tuple[Tensor, float] | None:
    """Whole numbers (levels, int64) and the unit by which they give the table, if there are any."""
    values = table.detach().double().cpu()
    sizes = values[values != 0].abs()
    unit = sizes.min().item() if len(sizes) else 1.0
    multiples = values / unit
    whole = multiples.round()
    return (whole.long(), unit) if (multiples - whole).abs().max() <= _TOLERANCE else None


def _fewest_bits(integers: Tensor, least: int) -> int | None:
    for bits in sorted(OPSETS):
        half = 2 ** (bits - 1)
        if bits >= least and -half <= integers.min() and integers.max() < half:
            return bits
    return None
