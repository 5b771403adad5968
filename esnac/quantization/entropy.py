"""What codes cost at least, and what a Huffman code makes of them; for tables of sizes.

Stored are codes by `rans`, which comes closer to the entropy than a Huffman code of pairs.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def count_codes(codes: NDArray[np.uint8], levels: int) -> Counts:
    """How often each code occurs."""
    return np.bincount(codes.reshape(-1), minlength=levels)


def count_pairs(codes: NDArray[np.uint8], levels: int) -> Counts:
    """How often two codes follow each other; a last single code stands with a 0."""
    flat = np.zeros(codes.size + codes.size % 2, np.int64)
    flat[: codes.size] = codes.reshape(-1)
    return np.bincount(flat[::2] * levels + flat[1::2], minlength=levels**2)


def entropy(counts: Counts) -> float:
    """Bits per symbol, -sum p log2 p; 0 for nothing at all."""
    seen = counts[counts > 0]
    total = seen.sum()
    return float(np.log2(total) - (seen * np.log2(seen)).sum() / total) if len(seen) else 0.0


def huffman_lengths(counts: Counts) -> NDArray[np.int64]:
    """Bits of each symbol's code word, 0 for symbols that do not occur.

    A single symbol has a word of 0 bits: how many there are says it all. The sum of 2**-length over
    the symbols that occur is 1 (Kraft).
    """
    lengths = np.zeros(len(counts), np.int64)
    order = count()  # ties are decided by age, so equal counts give equal codes on every machine
    heap = [(int(n), next(order), [symbol]) for symbol, n in enumerate(counts) if n > 0]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        lengths[members] += 1
        heapq.heappush(heap, (first[0] + second[0], next(order), members))
    return lengths


def huffman_bits(counts: Counts) -> float:
    """Mean bits per symbol; between the entropy and the entropy + 1."""
    total = counts.sum()
    return float((counts * huffman_lengths(counts)).sum() / total) if total else 0.0
