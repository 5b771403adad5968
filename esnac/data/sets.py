"""Labelled images as tensors, and the three splits of a set with what augmentation needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esnac.errors import DataError


class Images(Protocol):
    """Labelled images of one size, wherever they lie, that come out on the device of the labels."""

    @property
    def labels(self) -> Tensor:
        """n, int64."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Images: ...

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices` (k, int64), in that order."""
        ...

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each of the `parts` (k, int64, indices) its images: k x C x H x W, uint8."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """`images`: n x C x H x W, uint8; `labels`: n, int64, on the same device. Never written to."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dim() != 4 or images.dtype != torch.uint8:
            found = f"{tuple(images.shape)} of {images.dtype}"
            raise DataError(f"Images are a n x C x H x W tensor of torch.uint8; got {found}.")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            found = f"{tuple(labels.shape)} of {labels.dtype}"
            raise DataError(f"Labels are {len(images)} values of torch.int64; got {found}.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (k, int64), in that order; a copy."""
        indices = indices.to(self.labels.device)
        return ImageSet(self.images.index_select(0, indices), self.labels[indices])

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        for part in parts:
            # 20 times faster than images[part].
            yield self.images.index_select(0, part.to(self.images.device))


@dataclass(frozen=True)
class DataSet:
    """`validation` was cut from the training images; `test` must never choose anything.

    `mean` and `std` have one value per channel, in units of the full range (0..255 -> 0..1).
    Augmentation: zero padding by `padding` pixels on each side, a random crop of the old size, and
    a horizontal mirror image half of the time if `flip`.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.train.shape

    @property
    def streamed(self) -> bool:
        """Whether images are decoded anew whenever they are needed: the set may be very large."""
        return not isinstance(self.train, ImageSet)

    def to(self, device: torch.device | str) -> DataSet:
        return dataclasses.replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )
