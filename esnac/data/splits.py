"""Which images go where: class by class, a function of the labels and a generator alone."""

from __future__ import annotations

import torch
from torch import Tensor

from esnac.errors import DataError


def class_sizes(labels: Tensor, num_classes: int) -> Tensor:
    """Images per class: num_classes, int64."""
    return torch.bincount(labels, minlength=num_classes)


def equal_counts(sizes: Tensor, total: int) -> Tensor:
    """`total` images, as many of each class as of any other, as far as the `sizes` allow.

    What does not divide goes to the first classes. `total` above the sum of sizes gives all.
    """
    counts = torch.zeros_like(sizes)
    left = min(total, int(sizes.sum()))
    while left:
        open_classes = (counts < sizes).nonzero().flatten()
        share = left // len(open_classes)
        if share == 0:
            open_classes, share = open_classes[:left], 1
        added = (sizes - counts)[open_classes].clamp(max=share)
        counts[open_classes] += added
        left -= int(added.sum())
    return counts


def proportional_counts(
    sizes: Tensor, total: int, generator: torch.Generator, keep: int = 1
) -> Tensor:
    """`total` images, of each class in proportion to its size, leaving at least `keep` of each.

    What does not divide goes to the largest remainders, equal ones in random order. Raises
    DataError when so many cannot be taken.
    """
    room = (sizes - keep).clamp(min=0)
    if total > int(room.sum()):
        raise DataError(
            f"Cannot take {total} of {int(sizes.sum())} images in {len(sizes)} classes and leave "
            f"at least {keep} of each class; at most {int(room.sum())}."
        )
    exact = total * sizes
    images = max(1, int(sizes.sum()))
    counts = torch.minimum(exact // images, room)
    shuffled = torch.randperm(len(sizes), generator=generator)
    order = shuffled[(exact % images)[shuffled].argsort(descending=True, stable=True)]
    while (left := total - int(counts.sum())) > 0:
        takers = order[(counts < room)[order]][:left]
        counts[takers] += 1
    return counts


def draw(labels: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Indices, ascending, of `counts[c]` random images of each class c.

    A smaller count draws a part of what a larger one would from an equal generator.
    """
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    sizes = class_sizes(labels, len(counts))
    first = sizes.cumsum(0) - sizes
    classes = labels[by_class]
    rank = torch.arange(len(labels)) - first[classes]
    return by_class[rank < counts[classes]].sort().values


def without(indices: Tensor, taken: Tensor) -> Tensor:
    """The `indices` (ascending) that are not among `taken`."""
    return indices[~torch.isin(indices, taken)]
