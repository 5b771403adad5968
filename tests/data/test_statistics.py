from __future__ import annotations

import pytest
import torch

from esnac.data.statistics import LOOKED_AT, looked_at, statistics, value_counts


def test_statistics_are_those_of_torch() -> None:
    images = torch.randint(0, 256, (30, 3, 5, 4), dtype=torch.uint8)
    mean, std = statistics(value_counts(images))
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_a_constant_channel_can_be_divided_by() -> None:
    images = torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)
    assert statistics(value_counts(images)) == ((0.2,), (1 / 255,))


def test_of_many_images_some_are_looked_at() -> None:
    assert looked_at(7).tolist() == list(range(7))
    assert len(looked_at(LOOKED_AT + 1)) == LOOKED_AT
    million = looked_at(1_281_167)
    assert len(million.unique()) == LOOKED_AT
    assert million[-1] > 1_281_100
