from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esnac.data.splits import class_sizes, draw, equal_counts, proportional_counts, without
from esnac.errors import DataError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sizes", "total", "counts"),
    [
        ([50, 50, 50], 30, [10, 10, 10]),
        ([50, 50, 50], 32, [11, 11, 10]),  # what does not divide: the first classes
        ([2, 50, 50], 30, [2, 14, 14]),  # a small class gives all, the others share the rest
        ([3, 4], 100, [3, 4]),
        ([0, 5], 4, [0, 4]),
    ],
)
def test_equal_counts_by_hand(sizes: list[int], total: int, counts: list[int]) -> None:
    assert equal_counts(torch.tensor(sizes), total).tolist() == counts


@given(SIZES, st.integers(0, 400))
def test_equal_counts_fill_from_below(sizes: list[int], total: int) -> None:
    counts = equal_counts(torch.tensor(sizes), total).tolist()
    assert sum(counts) == min(total, sum(sizes))
    highest = max(counts)
    for count, size in zip(counts, sizes, strict=True):
        assert count == size or (count < size and count >= highest - 1)


def test_proportional_counts_by_hand() -> None:
    # 10 % of 20, 30, 50 images: 2, 3, 5; and exact shares 1.6, 2.4: remainders .6 and .4
    assert proportional_counts(torch.tensor([20, 30, 50]), 10, generator()).tolist() == [2, 3, 5]
    assert proportional_counts(torch.tensor([20, 30]), 4, generator()).tolist() == [2, 2]


@given(SIZES, st.integers(0, 300), st.integers(0, 5))
def test_proportional_counts_leave_some_of_each(sizes: list[int], total: int, keep: int) -> None:
    room = sum(max(size - keep, 0) for size in sizes)
    if total > room:
        with pytest.raises(DataError, match=f"at most {room}"):
            proportional_counts(torch.tensor(sizes), total, generator(), keep)
        return
    counts = proportional_counts(torch.tensor(sizes), total, generator(), keep).tolist()
    assert sum(counts) == total
    assert all(count <= max(size - keep, 0) for count, size in zip(counts, sizes, strict=True))


def test_equal_remainders_are_spread_at_random() -> None:
    sizes = torch.full((100,), 5)  # 50 of 500: half an image of each class
    drawn = [proportional_counts(sizes, 50, generator(seed)) for seed in range(2)]
    assert all(set(counts.tolist()) == {0, 1} for counts in drawn)
    assert drawn[0].tolist() != drawn[1].tolist()


def test_draw_takes_the_counts_ascending_without_repeats() -> None:
    labels = torch.randint(0, 5, (200,), generator=generator(3))
    counts = torch.tensor([3, 0, 7, 1, 5])
    drawn = draw(labels, counts, generator())
    assert class_sizes(labels[drawn], 5).tolist() == counts.tolist()
    assert (drawn.diff() > 0).all()
    assert torch.equal(drawn, draw(labels, counts, generator()))
    assert not torch.equal(drawn, draw(labels, counts, generator(1)))


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    labels = torch.arange(100) % 4
    small = draw(labels, torch.full((4,), 3), generator())
    large = draw(labels, torch.full((4,), 9), generator())
    assert torch.isin(small, large).all()


def test_without() -> None:
    left = without(torch.tensor([1, 3, 5, 8]), torch.tensor([3, 8, 9]))
    assert left.tolist() == [1, 5]
