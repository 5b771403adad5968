"""What it costs to add up numbers of few bits, under three models of accumulation.

"fp32": every addition has 32 bits. "fixed": integers in a register wide enough for the whole sum.
"tree": numbers are added in pairs, then the results in pairs, each level one bit wider than the one
before. Narrower sums may be claimed only for an implementation that really adds so.
"""

from __future__ import annotations

from typing import Literal

Accumulation = Literal["fp32", "fixed", "tree"]

#: Bits of a full operation; nothing counts as wider.
FULL = 32


def sum_bits(terms: int, width: int, accumulation: Accumulation) -> int:
    """Bit-additions of a sum of `terms` numbers of `width` bits; 32 of them are one operation."""
    additions = max(terms - 1, 0)
    if accumulation == "tree" and width < FULL:
        return adder_tree(terms, width)
    return additions * result_width(terms, width, accumulation)


def result_width(terms: int, width: int, accumulation: Accumulation) -> int:
    """Bits of the sum itself."""
    if accumulation == "fp32":
        return FULL
    return min(width + (max(terms, 1) - 1).bit_length(), FULL)


def adder_tree(terms: int, width: int) -> int:
    """Bit-additions of a tree whose leaves have `width` bits; an odd number out moves up."""
    total = 0
    while terms > 1:
        total += terms // 2 * min(width, FULL)
        terms, width = (terms + 1) // 2, width + 1
    return total
