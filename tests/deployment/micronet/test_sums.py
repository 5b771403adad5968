from __future__ import annotations

import pytest

from esnac.deployment.micronet.sums import adder_tree, result_width, sum_bits

#: Numbers added and bit-additions of an adder tree of base 8.
TREES = [(1, 0), (2, 8), (3, 17), (4, 25), (5, 35), (8, 60), (9, 71), (16, 131), (27, 231)]


@pytest.mark.parametrize(("terms", "expected"), TREES)
def test_adder_trees_of_the_winner(terms: int, expected: int) -> None:
    assert adder_tree(terms, 8) == sum_bits(terms, 8, "tree") == expected


def test_nine_numbers_by_hand() -> None:
    """4 additions of 8 bits, 2 of 9, one of 10, one of 11: 2.21875 operations instead of 8."""
    assert sum_bits(9, 8, "tree") / 32 == (4 * 8 + 2 * 9 + 10 + 11) / 32 == 2.21875
    assert sum_bits(9, 8, "fixed") == 8 * 12
    assert sum_bits(9, 8, "fp32") == 8 * 32


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 9, 64, 65, 576])
def test_the_sum_holds_the_largest_values(terms: int) -> None:
    """`terms` times the largest number of 5 bits fits; with one bit less it would not."""
    width = result_width(terms, 5, "tree")
    assert width == result_width(terms, 5, "fixed")
    assert terms * 31 < 2**width
    assert terms == 1 or terms * 32 > 2 ** (width - 1)


@pytest.mark.parametrize("accumulation", ["fixed", "tree"])
def test_nothing_is_wider_than_32_bits(accumulation) -> None:
    for width in (32, 31, 36):
        assert sum_bits(100, width, accumulation) <= 99 * 32
        assert result_width(100, width, accumulation) == 32
    assert sum_bits(100, 32, accumulation) == 99 * 32


def test_no_terms_no_additions() -> None:
    for accumulation in ("fp32", "fixed", "tree"):
        assert sum_bits(0, 8, accumulation) == sum_bits(1, 8, accumulation) == 0
