from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source, assemble, partition
from esnac.data.statistics import statistics, value_counts
from esnac.errors import DataError, SettingsError


def numbered(labels: Tensor, channels: int = 3) -> Labelled:
    """2x2 images whose pixels are their own index."""

    def read(indices: Tensor) -> Tensor:
        return indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 2, 2).contiguous()

    return Labelled(labels, read)


def source(images: int = 200, classes: int = 10, test: bool = True, **options: object) -> Source:
    labels = torch.arange(images) % classes
    part = numbered(torch.arange(20) % classes) if test else None
    names = tuple(f"class {index}" for index in range(classes))
    return Source(numbered(labels), part, names, padding=1, flip=True, **options)  # type: ignore[arg-type]


def test_ten_percent_of_each_class_validate() -> None:
    data = assemble("set", source(), DataSettings())
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 20)
    assert torch.bincount(data.validation.labels).tolist() == [2] * 10
    # Pixels tell the index: nothing in both, nothing lost, labels still fit.
    indices = torch.cat([data.train.images, data.validation.images])[:, 0, 0, 0].long()
    assert sorted(indices.tolist()) == list(range(200))
    assert torch.equal(indices % 10, torch.cat([data.train.labels, data.validation.labels]))


def test_the_split_seed_moves_validation_and_never_the_test_images() -> None:
    own = source(test=False)
    one, two = (partition("set", own, DataSettings(split_seed=seed)) for seed in (1, 2))
    assert one.test is not None
    assert two.test is not None
    assert len(one.test) == 40
    assert torch.equal(one.test, two.test)
    assert not torch.equal(one.validation, two.validation)
    again = partition("set", own, DataSettings(split_seed=1))
    assert torch.equal(one.validation, again.validation)
    everything = torch.cat([one.train, one.validation, one.test])
    assert sorted(everything.tolist()) == list(range(200))


def test_limit_counts_training_and_validation_images_and_spares_the_test_set() -> None:
    data = assemble("set", source(), DataSettings(limit=50))
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 20)
    both = torch.cat([data.train.labels, data.validation.labels])
    assert torch.bincount(both).tolist() == [5] * 10
    # At most 10 % of the limit also where the set's default is a number ...
    published = source(validation=50)
    assert len(assemble("set", published, DataSettings(limit=100)).validation) == 10
    assert len(assemble("set", published, DataSettings()).validation) == 50
    # ... but a number that was asked for is kept.
    asked = DataSettings(limit=100, validation=30)
    assert len(assemble("set", published, asked).validation) == 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataSettings(limit=19), "data.limit=19 is too small"),
        (DataSettings(validation=191), "at most 190"),
        (DataSettings(limit=20, validation=11), "at most 10"),
    ],
)
def test_too_few_images(settings: DataSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assemble("set", source(), settings)


def test_two_images_of_each_class_are_enough() -> None:
    parts = partition("set", source(images=4, classes=2, test=False), DataSettings())
    assert parts.test is not None
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [2, 1, 1]


def test_settings_override_the_defaults_of_the_set() -> None:
    data = assemble("set", source(), DataSettings())
    assert (data.padding, data.flip) == (1, True)
    data = assemble("set", source(), DataSettings(padding=0, flip=False))
    assert (data.padding, data.flip) == (0, False)
    with pytest.raises(SettingsError, match="below the side of 2x2; got 2"):
        assemble("set", source(), DataSettings(padding=2))


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"validation": 0}, {"size": 0}, {"padding": -1}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=f"data.{next(iter(wrong))} must be at least"):
        DataSettings(**wrong)  # type: ignore[arg-type]


def test_statistics_come_from_the_training_images_alone() -> None:
    data = assemble("set", source(), DataSettings(limit=40))
    assert (data.mean, data.std) == statistics(value_counts(data.train.images))
    given = ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert assemble("set", source(statistics=given), DataSettings()).std == given[1]


def test_grey_parts_become_rgb_beside_rgb() -> None:
    labels = torch.arange(40) % 2
    mixed = Source(numbered(labels, 1), numbered(labels, 3), ("a", "b"), padding=0, flip=False)
    data = assemble("set", mixed, DataSettings())
    assert data.train.images.shape[1] == data.test.images.shape[1] == 3
