"""Batches of normalised inputs, made on the device where the images lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from esnac.data import augment
from esnac.data.sets import DataSet, Images
from esnac.group import ALONE, Group


def training_batches(
    data: DataSet,
    batch_size: int,
    *,
    order_generator: torch.Generator | None,
    augmentation_seed: int | None,
    epoch: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    group: Group = ALONE,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(inputs B x C x H x W, labels B, indices B into `data.train`), each image once.

    `order_generator` (CPU) shuffles; None keeps the order of the set. `augmentation_seed` None
    leaves the images as they are. The last batch may be smaller, but a single image joins the
    batch before: batch norm cannot train on one.

    A rank of a `group` gets its share of each batch (`Group.share`).
    """
    train = data.train
    n, device = len(train), train.labels.device
    plan = None
    if augmentation_seed is not None and (data.padding or data.flip):
        plan = augment.plan(n, augmentation_seed, epoch, data.padding, data.flip).to(device)
    shuffled = None if order_generator is None else torch.randperm(n, generator=order_generator)
    order = (torch.arange(n) if shuffled is None else shuffled).to(device)
    sizes = batch_sizes(n, batch_size)
    own = [batch[group.share(len(batch))[0]] for batch in order.split(sizes)]
    for indices, images in zip(own, train.batches(own), strict=True):
        if plan is not None:
            images = augment.apply(images, plan.rows(indices))
        inputs = augment.normalise(images, data.mean, data.std, dtype, memory_format)
        yield inputs, train.labels[indices], indices


def evaluation_batches(
    images: Images,
    data: DataSet,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs B x C x H x W, labels B) of `images` in order, normalised as `data` says."""
    parts = torch.arange(len(images), device=images.labels.device).split(batch_size)
    for part, labels in zip(images.batches(parts), images.labels.split(batch_size), strict=True):
        yield augment.normalise(part, data.mean, data.std, dtype, memory_format), labels


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Rows of each batch of `training_batches` over `count` images, of all ranks together."""
    full, left = divmod(count, batch_size)
    sizes = [batch_size] * full + [left] * (left > 0)
    if len(sizes) > 1 and left == 1:
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes
