"""From labelled images, not yet decoded, to a `DataSet`: one rule of splitting for all sets.

Labels come first and cost nothing; only the images that a split really takes are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from esnac.data.sets import DataSet, ImageSet
from esnac.data.settings import DataSettings
from esnac.data.splits import class_sizes, draw, equal_counts, proportional_counts, without
from esnac.errors import DataError, SettingsError
from esnac.runtime import torch_generator

#: The seed of the test images of a set that comes without: fixed, so that no setting moves them.
TEST_SEED = 0
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Labelled:
    """`labels`: n, int64; `read(indices)` gives those images, k x C x H x W, uint8."""

    labels: Tensor
    read: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """What a reader knows of a set. No `test`: 20 % of `train`, of each class, by a fixed seed.

    `padding`, `flip` and `validation` are the set's defaults; `validation` None means 10 %.
    `statistics`: mean and std per channel, None to compute them from the training images.
    """

    train: Labelled
    test: Labelled | None
    class_names: tuple[str, ...]
    padding: int
    flip: bool
    validation: int | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Partition:
    """Ascending indices into `source.train`; `test` likewise, or None for all of `source.test`."""

    train: Tensor
    validation: Tensor
    test: Tensor | None


def partition(name: str, source: Source, settings: DataSettings) -> Partition:
    """The splits of `source`. Raises DataError when there are too few images for `settings`."""
    labels, num_classes = source.train.labels, source.num_classes
    pool, test = torch.arange(len(labels)), None
    try:
        if source.test is None:
            generator = torch_generator(TEST_SEED, "test")
            wanted = max(1, round(TEST_SHARE * len(pool)))
            counts = proportional_counts(class_sizes(labels, num_classes), wanted, generator)
            test = draw(labels, counts, generator)
            pool = without(pool, test)
        if settings.limit is not None:
            pool = _limited(pool, labels, num_classes, settings)
        generator = torch_generator(settings.split_seed, "validation")
        sizes = class_sizes(labels[pool], num_classes)
        counts = proportional_counts(sizes, _validation(len(pool), source, settings), generator)
        validation = pool[draw(labels[pool], counts, generator)]
    except DataError as error:
        raise DataError(
            f"{name} cannot be split into train, validation and test: {error}"
        ) from None
    return Partition(without(pool, validation), validation, test)


def assemble(name: str, source: Source, settings: DataSettings) -> DataSet:
    """Splits `source` and decodes what the splits take."""
    parts = partition(name, source, settings)
    if parts.test is not None:
        test_images, test_labels = source.train.read(parts.test), source.train.labels[parts.test]
    else:
        assert source.test is not None
        test_images = source.test.read(torch.arange(len(source.test.labels)))
        test_labels = source.test.labels
    train_images = source.train.read(parts.train)
    validation_images = source.train.read(parts.validation)
    train_images, validation_images, test_images = _same_channels(
        train_images, validation_images, test_images
    )
    mean, std = source.statistics or statistics(train_images)
    padding = source.padding if settings.padding is None else settings.padding
    if padding >= min(train_images.shape[2:]):
        height, width = train_images.shape[2:]
        raise SettingsError(
            f"data.padding must be below the side of {height}x{width}; got {padding}."
        )
    return DataSet(
        name=name,
        train=ImageSet(train_images, source.train.labels[parts.train]),
        validation=ImageSet(validation_images, source.train.labels[parts.validation]),
        test=ImageSet(test_images, test_labels),
        num_classes=source.num_classes,
        class_names=source.class_names,
        mean=mean,
        std=std,
        padding=padding,
        flip=source.flip if settings.flip is None else settings.flip,
    )


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of n x C x H x W uint8 images, in units of 255.

    From the histogram of the 256 values: exact, and without a float copy of the images. A constant
    channel gets the std of one step of 256, so that it can be divided by.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        variance = (share * (values - mean).square()).sum()
        means.append(mean.item())
        stds.append(max(variance.sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)


def require_two_of_each(name: str, labels: Tensor, class_names: tuple[str, ...]) -> None:
    """Raises DataError for fewer than two classes, or images of a class, which it names."""
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        raise DataError(f"{name}: needs at least two classes; found {found}.")
    for class_name, size in zip(class_names, class_sizes(labels, len(class_names)), strict=True):
        if size < 2:
            found = "a single image" if size == 1 else "no image"
            raise DataError(
                f"{name}: the class {class_name!r} has {found} to train on; each class needs two "
                "or more (one to train and one to validate on)."
            )


def _limited(pool: Tensor, labels: Tensor, num_classes: int, settings: DataSettings) -> Tensor:
    assert settings.limit is not None
    if settings.limit < 2 * num_classes:
        raise DataError(
            f"data.limit={settings.limit} is too small: two images of each of {num_classes} "
            f"classes are {2 * num_classes}."
        )
    counts = equal_counts(class_sizes(labels[pool], num_classes), settings.limit)
    return pool[draw(labels[pool], counts, torch_generator(settings.split_seed, "limit"))]


def _validation(images: int, source: Source, settings: DataSettings) -> int:
    if settings.validation is not None:
        return settings.validation
    share = max(1, round(VALIDATION_SHARE * images))
    if source.validation is None:
        return share
    return source.validation if settings.limit is None else min(source.validation, share)


def _same_channels(*parts: Tensor) -> list[Tensor]:
    """Grey images (one channel) become RGB where another part has RGB."""
    channels = max(part.shape[1] for part in parts)
    return [part.expand(-1, channels, -1, -1).contiguous() for part in parts]
