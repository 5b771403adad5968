"""Codes in little more than their entropy: rANS, asymmetric numeral systems (Duda 2013), in lanes.

A coder's state is a whole number x in [2**16, 2**32). A symbol of frequency f out of 2**14, with c
in front of it, turns x into (x // f) * 2**14 + x % f + c; where x would leave the range, its low 16
bits are put out first. What comes in last goes out first. Many states (lanes) take turns, so that
numpy does a step of all of them at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Frequencies are shares of 2**PRECISION.
PRECISION = 14
_WHOLE = 1 << PRECISION
_LOWEST = 1 << 16
#: Most codes of a lane, which costs about 24 bits: 0.012 bits per code. It also bounds what a short
#: file can unfold to.
STEPS = 2048


def encode(codes: NDArray[np.uint8], levels: int) -> bytes:
    """Codes (flat, at least one, each below `levels`): frequencies, states, 16-bit words."""
    shares = _shares(np.bincount(codes, minlength=levels))
    before = np.cumsum(shares) - shares
    lanes = lanes_of(len(codes))
    states = np.full(lanes, _LOWEST, np.int64)
    words: list[NDArray[np.uint16]] = []
    for start in reversed(range(0, len(codes), lanes)):
        row = codes[start : start + lanes]
        x, f, c = states[: len(row)], shares[row], before[row]
        full = x >= f << (32 - PRECISION)
        words.append((x[full] & 0xFFFF).astype("<u2"))
        x[full] >>= 16
        x[:] = (x // f << PRECISION) + x % f + c
    head = (shares & 0xFFFF).astype("<u2").tobytes() + states.astype("<u4").tobytes()
    return head + b"".join(piece.tobytes() for piece in reversed(words))


def decode(data: bytes, count: int, levels: int) -> NDArray[np.uint8]:
    """The codes again. Raises ValueError for bytes that no `count` codes give."""
    lanes = lanes_of(count)
    head = 2 * levels + 4 * lanes
    if count < 1 or len(data) < head or (len(data) - head) % 2:
        raise ValueError(f"{len(data)} bytes for {count} codes of {levels} levels")
    shares = np.frombuffer(data, "<u2", levels).astype(np.int64)
    if shares.sum() != _WHOLE:
        raise ValueError("frequencies that do not add up")
    states = np.frombuffer(data, "<u4", lanes, 2 * levels).astype(np.int64)
    words = np.frombuffer(data, "<u2", offset=head).astype(np.int64)
    # By the low bits of the state: the symbol, its frequency, the place within its share.
    symbol = np.repeat(np.arange(levels, dtype=np.uint8), shares)
    share = np.repeat(shares, shares)
    place = np.arange(_WHOLE) - np.repeat(np.cumsum(shares) - shares, shares)
    codes = np.empty(count, np.uint8)
    spent = 0
    for start in range(0, count, lanes):
        row = codes[start : start + lanes]
        x = states[: len(row)]
        low = x & (_WHOLE - 1)
        row[:] = symbol[low]
        x[:] = share[low] * (x >> PRECISION) + place[low]
        short = np.flatnonzero(x < _LOWEST)
        if spent + len(short) > len(words):
            raise ValueError("too few words")
        x[short] = x[short] << 16 | words[spent : spent + len(short)]
        spent += len(short)
    if spent != len(words) or (states != _LOWEST).any():
        raise ValueError("words left over, or a state that is no start")
    return codes


def lanes_of(count: int) -> int:
    return -(-count // STEPS)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers that add up to 2**PRECISION, near to the counts' shares and 1 at least."""
    present = (counts > 0).astype(np.int64)
    free = _WHOLE - present.sum()
    return np.diff(np.cumsum(counts) * free // counts.sum(), prepend=0) + present
