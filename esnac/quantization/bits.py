"""Codes side by side without gaps: so many bits each, or several codes as digits of one number.

Six levels need 2.585 bits, and 3 when each code has bits of its own. Five of them as digits in base
6 make a number below 7776, which fits 13 bits: 2.6 bits each.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

#: Widest number that is packed.
MOST_BITS = 16
#: Numbers that are handled at a time (a multiple of 8, so that each piece ends with a byte).
_PIECE = 1 << 18

Numbers = NDArray[np.uint16]


@cache
def group_of(levels: int) -> tuple[int, int]:
    """How many codes share a number, and its bits: the fewest bits per code up to MOST_BITS.

    (1, 2) for 4 levels, (5, 13) for 6, (3, 7) for 5; a power of two needs no company.
    """
    levels = max(levels, 2)
    groups = [(n, (levels**n - 1).bit_length()) for n in range(1, MOST_BITS + 1)]
    return min(
        (group for group in groups if group[1] <= MOST_BITS), key=lambda group: group[1] / group[0]
    )


def packed_size(count: int, levels: int) -> int:
    """Bytes of `count` codes."""
    size, width = group_of(levels)
    return _ceil(_ceil(count, size) * width, 8)


def pack(codes: NDArray[np.uint8], levels: int) -> bytes:
    """Codes (flat, each below `levels` <= 256) as bytes."""
    size, width = group_of(levels)
    if size > 1:
        digits = np.zeros((_ceil(len(codes), size), size), np.uint16)
        digits.reshape(-1)[: len(codes)] = codes
        numbers = np.zeros(len(digits), np.uint16)
        for place in range(size):
            numbers = numbers * np.uint16(max(levels, 2)) + digits[:, place]
        return pack_numbers(numbers, width)
    return pack_numbers(codes.astype(np.uint16), width)


def unpack(data: bytes, count: int, levels: int) -> NDArray[np.uint8]:
    """The codes again. Raises ValueError for bytes that no such codes give."""
    size, width = group_of(levels)
    if len(data) != packed_size(count, levels):
        raise ValueError(f"{len(data)} bytes for {count} codes of {levels} levels")
    numbers = unpack_numbers(data, _ceil(count, size), width)
    digits = np.empty((len(numbers), size), np.uint8)
    for place in reversed(range(size)):
        numbers, digits[:, place] = np.divmod(numbers, np.uint16(max(levels, 2)))
    if numbers.any():
        raise ValueError(f"codes beyond {levels} levels")
    return digits.reshape(-1)[:count]


def pack_numbers(numbers: Numbers, width: int) -> bytes:
    """Numbers of `width` bits (1 to 16), the highest bit first; zeros fill the last byte."""
    pieces = []
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        bits = np.empty((len(piece), width), np.uint8)
        for place in range(width):
            bits[:, place] = (piece >> np.uint16(width - 1 - place)) & np.uint16(1)
        pieces.append(np.packbits(bits.reshape(-1)).tobytes())
    return b"".join(pieces)


def unpack_numbers(data: bytes, count: int, width: int) -> Numbers:
    """`count` numbers of `width` bits; `data` must have them all."""
    numbers = np.zeros(count, np.uint16)
    raw = np.frombuffer(data, np.uint8)
    for start in range(0, count, _PIECE):
        piece = numbers[start : start + _PIECE]
        first = start * width // 8
        flat = np.unpackbits(raw[first : first + _ceil(len(piece) * width, 8)])
        bits = flat[: len(piece) * width].reshape(-1, width)
        for place in range(width):
            piece <<= np.uint16(1)
            piece |= bits[:, place]
    return numbers


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
