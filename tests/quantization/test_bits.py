from __future__ import annotations

import numpy as np
import pytest

from esnac.quantization import bits


def draw(count: int, levels: int) -> np.ndarray:
    return np.random.default_rng(levels).integers(0, levels, count).astype(np.uint8)


def test_by_hand() -> None:
    assert bits.pack(np.array([1, 2, 3, 0], np.uint8), 4) == bytes([0b01101100])
    assert bits.pack(np.array([5, 1], np.uint8), 8) == bytes([0b10100100])  # filled with 0
    assert bits.pack_numbers(np.array([7775], np.uint16), 13) == bytes([0b11110010, 0b11111000])


def test_six_levels_take_13_bits_for_five() -> None:
    """5 + 5 * 6 + 5 * 36 + ... = 7775; 1,000 codes of 2.6 bits are 325 bytes."""
    assert bits.group_of(6) == (5, 13)
    assert bits.pack(np.full(5, 5, np.uint8), 6) == bytes([0b11110010, 0b11111000])
    assert bits.packed_size(1000, 6) == 325


@pytest.mark.parametrize(
    ("levels", "group"), [(1, (1, 1)), (2, (1, 1)), (3, (5, 8)), (5, (3, 7)), (256, (1, 8))]
)
def test_groups(levels: int, group: tuple[int, int]) -> None:
    assert bits.group_of(levels) == group


@pytest.mark.parametrize("count", [0, 1, 7, 8, 13, 1001])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 32, 64, 100, 128, 255, 256])
def test_round_trip(levels: int, count: int) -> None:
    codes = draw(count, levels)
    data = bits.pack(codes, levels)
    assert len(data) == bits.packed_size(count, levels)
    assert (bits.unpack(data, count, levels) == codes).all()


def test_many_codes_are_handled_in_pieces() -> None:
    for levels in (2, 6, 8):
        codes = draw(600_000, levels)
        assert (bits.unpack(bits.pack(codes, levels), len(codes), levels) == codes).all()


def test_no_group_costs_more_than_whole_bits() -> None:
    for levels in range(2, 257):
        size, width = bits.group_of(levels)
        assert np.log2(levels) <= width / size <= np.ceil(np.log2(levels))


def test_bytes_that_no_codes_give() -> None:
    with pytest.raises(ValueError, match="2 bytes for 4 codes"):
        bits.unpack(b"..", 4, 4)
    with pytest.raises(ValueError, match="beyond 6 levels"):
        bits.unpack(b"\xff\xff", 5, 6)
