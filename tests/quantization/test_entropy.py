from __future__ import annotations

import heapq

import numpy as np
import pytest
import torch

from esnac.quantization import rans
from esnac.quantization.entropy import (
    count_codes,
    count_pairs,
    entropy,
    huffman_bits,
    huffman_lengths,
)
from esnac.quantization.uniform import encode_uniform


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8: entropy and Huffman code are both 1.75 bits."""
    counts = np.array([4, 2, 0, 1, 1])
    assert entropy(counts) == pytest.approx(1.75)
    assert huffman_lengths(counts).tolist() == [1, 2, 0, 3, 3]
    assert huffman_bits(counts) == 1.75


def test_pairs_by_hand() -> None:
    counts = count_pairs(np.array([0, 1, 0, 1, 1], np.uint8), 2)
    assert counts.tolist() == [0, 2, 1, 0]  # (0, 1) twice, and (1, 0) with the filling


@pytest.mark.parametrize("seed", range(20))
def test_huffman_lies_between_entropy_and_entropy_plus_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10 ** rng.integers(1, 6), rng.integers(2, 256))
    counts[:2] += 1
    lengths = huffman_lengths(counts)
    assert sum(2.0**-n for n in lengths[counts > 0]) == 1  # Kraft
    assert entropy(counts) <= huffman_bits(counts) < entropy(counts) + 1
    assert (counts * lengths).sum() == merged_weights(counts)


def merged_weights(counts: np.ndarray) -> int:
    """The cost of an optimal code: the sum of all weights made by merging the two smallest."""
    heap, cost = [int(n) for n in counts if n], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        weight = heapq.heappop(heap) + heapq.heappop(heap)
        cost += weight
        heapq.heappush(heap, weight)
    return cost


def test_one_symbol_and_none() -> None:
    for counts in (np.array([0, 7]), np.array([0, 0])):
        assert entropy(counts) == 0
        assert huffman_bits(counts) == 0
        assert huffman_lengths(counts).tolist() == [0, 0]


def test_gaussian_weights_at_two_bits() -> None:
    """Buckets of 256; known: entropy 1.38, Huffman 1.61 by symbols and 1.40 by pairs."""
    w = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    codes = encode_uniform(w, levels=4, rows=256).codes.numpy()
    counts = count_codes(codes, 4)
    assert entropy(counts) == pytest.approx(1.38, abs=0.03)
    assert huffman_bits(counts) == pytest.approx(1.61, abs=0.03)
    assert huffman_bits(count_pairs(codes, 4)) / 2 == pytest.approx(1.40, abs=0.03)
    assert 8 * len(rans.encode(codes, 4)) / len(codes) < 1.01 * entropy(counts)
