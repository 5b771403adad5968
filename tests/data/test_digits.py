from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from esnac import data
from esnac.data import DataSettings


def test_all_1797_digits_are_split() -> None:
    digits = data.load("digits", None, DataSettings())
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert digits.input_shape == (1, 8, 8)
    assert (digits.num_classes, digits.padding, digits.flip) == (10, 1, False)
    # Counts per class, from the data set's description.
    total = sum(torch.bincount(part.labels, minlength=10) for part in parts)
    assert isinstance(total, torch.Tensor)
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for part in parts:
        share = torch.bincount(part.labels, minlength=10) / total
        assert share.max() - share.min() < 0.01


def test_pixels_are_the_grey_levels_over_the_whole_range() -> None:
    digits = data.load("digits", None, DataSettings())
    images = torch.cat([digits.train.images, digits.validation.images, digits.test.images])
    assert sorted(images.unique().tolist()) == [round(level * 255 / 16) for level in range(17)]
    levels = (images.double() * 16 / 255).round().sum().item()
    assert levels == load_digits().images.sum()


def test_equal_settings_give_equal_splits() -> None:
    one, two = (data.load("digits", None, DataSettings(split_seed=5)) for _ in range(2))
    assert torch.equal(one.train.images, two.train.images)
    other = data.load("digits", None, DataSettings(split_seed=6))
    assert not torch.equal(one.validation.images, other.validation.images)
    assert torch.equal(one.test.images, other.test.images)


def test_count_training_images() -> None:
    for settings in (DataSettings(), DataSettings(limit=100), DataSettings(validation=7)):
        whole = data.load("digits", None, settings)
        assert data.count_training_images("digits", None, settings) == len(whole.train)
