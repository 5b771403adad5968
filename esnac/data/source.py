"""From labelled images, not yet decoded, to a `DataSet`: one rule of splitting for all sets.

Labels come first and cost nothing; only the images that a split really takes are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esnac.data.decode import CHUNK
from esnac.data.file_list import FileList
from esnac.data.sets import DataSet, Images, ImageSet
from esnac.data.settings import DataSettings
from esnac.data.splits import class_sizes, draw, equal_counts, proportional_counts, without
from esnac.data.statistics import LOOKED_AT, Statistics, looked_at, statistics, value_counts
from esnac.data.streaming import Decoder, StreamedSet
from esnac.errors import DataError, SettingsError
from esnac.runtime import memory, torch_generator

#: The seed of the test images of a set that comes without: fixed, so that no setting moves them.
TEST_SEED = 0
TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
#: Of the memory, from which on images are streamed: putting a set together takes it twice.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Labelled:
    """`labels`: n, int64; `read(indices)` gives those images, k x C x H x W, uint8.

    `files`: where they lie, if each is a file of its own.
    """

    labels: Tensor
    read: Callable[[Tensor], Tensor]
    files: FileList | None = None


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
    statistics: Statistics | None = None

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
    """Splits `source` and decodes what the splits take, unless they are to be streamed."""
    parts = partition(name, source, settings)
    if streams(name, source, parts, settings):
        (train, validation, test), (mean, std) = _streamed(source, parts, settings)
    else:
        (train, validation, test), (mean, std) = _decoded(source, parts)
    padding = source.padding if settings.padding is None else settings.padding
    _, height, width = train.shape
    if padding >= min(height, width):
        raise SettingsError(
            f"data.padding must be below the side of {height}x{width}; got {padding}."
        )
    return DataSet(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=source.num_classes,
        class_names=source.class_names,
        mean=mean,
        std=std,
        padding=padding,
        flip=source.flip if settings.flip is None else settings.flip,
    )


def streams(name: str, source: Source, parts: Partition, settings: DataSettings) -> bool:
    """Whether the images stay on disk. Raises DataError where they should and cannot."""
    if source.train.files is None or (source.test is not None and source.test.files is None):
        if settings.stream is True:
            raise DataError(
                f"{name} cannot be streamed, only images in a folder can (an archive: unpack it). "
                "Leave data.stream out."
            )
        return False
    if settings.stream == "auto":
        test = parts.test if source.test is None else source.test.labels
        assert test is not None
        images = len(parts.train) + len(parts.validation) + len(test)
        return images * 3 * settings.size**2 > MEMORY_SHARE * memory()
    return settings.stream


#: Training, validation and test images.
_Splits = tuple[Images, Images, Images]


def _decoded(source: Source, parts: Partition) -> tuple[_Splits, Statistics]:
    """The splits in memory, and mean and std of the training images."""
    test, rows = _test(source, parts)
    train, validation, tests = _same_channels(
        source.train.read(parts.train), source.train.read(parts.validation), test.read(rows)
    )
    labels = source.train.labels
    splits = (
        ImageSet(train, labels[parts.train]),
        ImageSet(validation, labels[parts.validation]),
        ImageSet(tests, test.labels[rows]),
    )
    if source.statistics is not None:
        return splits, source.statistics
    some = train if len(train) <= LOOKED_AT else train.index_select(0, looked_at(len(train)))
    return splits, statistics(value_counts(some))


def _streamed(
    source: Source, parts: Partition, settings: DataSettings
) -> tuple[_Splits, Statistics]:
    """The same on disk; of the training images only some are decoded here."""
    test, rows = _test(source, parts)
    files = source.train.files
    assert files is not None
    if source.test is not None:
        assert source.test.files is not None
        rows, files = rows + len(files), files + source.test.files
    decoder = Decoder(files, settings.size, settings.workers)
    counts = torch.zeros(1, 256, dtype=torch.int64)
    some = parts.train[looked_at(len(parts.train))]
    for images in decoder.batches(some.split(CHUNK)):
        counts = counts + value_counts(images)  # one of grey counts for all three channels
    decoder = replace(decoder, channels=len(counts))
    labels = source.train.labels
    splits = (
        StreamedSet(decoder, parts.train, labels[parts.train]),
        StreamedSet(decoder, parts.validation, labels[parts.validation]),
        StreamedSet(decoder, rows, test.labels if source.test is not None else labels[rows]),
    )
    return splits, source.statistics or statistics(counts)


def _test(source: Source, parts: Partition) -> tuple[Labelled, Tensor]:
    """Where the test images come from, and which of them they are."""
    if parts.test is not None:
        return source.train, parts.test
    assert source.test is not None
    return source.test, torch.arange(len(source.test.labels))


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
