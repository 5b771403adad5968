from __future__ import annotations

import numpy as np
import pytest

from esnac.quantization import rans
from esnac.quantization.entropy import count_codes, entropy


@pytest.mark.parametrize("count", [1, 2, 2047, 2048, 2049, 4099, 10_007])
@pytest.mark.parametrize("levels", [1, 2, 5, 16, 256])
def test_round_trip(levels: int, count: int) -> None:
    rng = np.random.default_rng(count)
    codes = rng.binomial(levels - 1, 0.2, count).astype(np.uint8)
    assert (rans.decode(rans.encode(codes, levels), count, levels) == codes).all()


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_little_more_than_the_entropy(levels: int) -> None:
    codes = np.random.default_rng(0).binomial(levels - 1, 0.3, 200_000).astype(np.uint8)
    least = entropy(count_codes(codes, levels)) * len(codes) / 8
    lanes = 3 * rans.lanes_of(len(codes))  # 24 bits each
    assert least < len(rans.encode(codes, levels)) < 1.002 * least + 2 * levels + lanes


def test_one_symbol_costs_no_words() -> None:
    codes = np.full(5000, 3, np.uint8)
    data = rans.encode(codes, 4)
    assert len(data) == 2 * 4 + 4 * 3  # frequencies, and three lanes
    assert (rans.decode(data, 5000, 4) == 3).all()


def test_a_rare_symbol_survives() -> None:
    codes = np.zeros(300_000, np.uint8)
    codes[1234] = 1
    data = rans.encode(codes, 2)
    assert len(data) < 700
    assert (rans.decode(data, len(codes), 2) == codes).all()


def test_bytes_that_no_codes_give() -> None:
    codes = np.random.default_rng(0).integers(0, 4, 3000).astype(np.uint8)
    data = rans.encode(codes, 4)
    head = 2 * 4 + 4 * 2
    broken = {
        "bytes for": data[: head - 2],
        "too few words": data[:-2],
        "left over": data + b"\0\0",
        "add up": b"\1\0" + data[2:],
    }
    for message, wrong in broken.items():
        with pytest.raises(ValueError, match=message):
            rans.decode(wrong, len(codes), 4)
    with pytest.raises(ValueError, match=r"words|state"):
        rans.decode(data[:head] + data[head + 2 :] + b"\0\0", len(codes), 4)
    with pytest.raises(ValueError, match="bytes for"):
        rans.decode(data, 10**9, 4)
