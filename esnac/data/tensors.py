"""A user's own tensors as a `DataSet`."""

from __future__ import annotations

import torch
from torch import Tensor

from esnac.data.sets import DataSet
from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source, assemble
from esnac.errors import DataError


def from_tensors(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None = None,
    settings: DataSettings | None = None,
    name: str = "custom",
    class_names: tuple[str, ...] | None = None,
) -> DataSet:
    """Splits (images, labels); without `test`, 20 % of each class of `train` by a fixed seed.

    Images: n x C x H x W, uint8 or floats in [0, 1] (rounded to 256 steps). Labels: n whole numbers
    from 0; without `class_names` the largest one tells the number of classes. No padding and no
    flip unless `settings` ask for them: nothing is known about the images. The result is on the
    CPU. Raises DataError for other shapes, types or values.
    """
    train_part = _labelled(f"{name} (train)", *train)
    test_part = None if test is None else _labelled(f"{name} (test)", *test)
    parts = [train_part] if test_part is None else [train_part, test_part]
    if class_names is None:
        largest = max(int(part.labels.max()) for part in parts)
        class_names = tuple(map(str, range(largest + 1)))
    for part in parts:
        if int(part.labels.max()) >= len(class_names):
            raise DataError(
                f"{name}: label {int(part.labels.max())} is beyond {len(class_names)} classes."
            )
    if test is not None and train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{tuple(train[0].shape[1:])} and {tuple(test[0].shape[1:])}"
        raise DataError(f"{name}: training and test images differ in shape: {shapes}.")
    source = Source(train_part, test_part, class_names, padding=0, flip=False)
    return assemble(name, source, settings or DataSettings())


def _labelled(name: str, images: Tensor, labels: Tensor) -> Labelled:
    if images.dim() != 4 or not len(images):
        raise DataError(f"{name}: images are n x C x H x W, n > 0; got {tuple(images.shape)}.")
    if labels.shape != images.shape[:1]:
        raise DataError(f"{name}: {len(images)} images, but labels of {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{name}: labels are whole numbers; got {labels.dtype}.")
    if int(labels.min()) < 0:
        raise DataError(f"{name}: labels start at 0; got {int(labels.min())}.")
    whole = _bytes(name, images.detach().cpu())
    return Labelled(labels.detach().cpu().long(), lambda indices: whole.index_select(0, indices))


def _bytes(name: str, images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: images are uint8 or floats in [0, 1]; got {images.dtype}.")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also when they are NaN
        raise DataError(f"{name}: images of floats lie in [0, 1]; got {low:.4g} to {high:.4g}.")
    return (images.float() * 255).round().to(torch.uint8)
