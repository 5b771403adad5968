"""Mean and standard deviation of images per channel."""

from __future__ import annotations

import torch
from torch import Tensor

#: Mean and standard deviation, one value per channel each, in units of 255.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: Of more training images than this, so many, evenly spaced, tell mean and standard deviation: the
#: next digit would cost a pass over a set that may take an hour to decode.
LOOKED_AT = 50_000


def looked_at(count: int) -> Tensor:
    """Indices (int64, ascending) of the images of `count` that are looked at."""
    some = min(count, LOOKED_AT)
    return torch.arange(some) * count // some


def value_counts(images: Tensor) -> Tensor:
    """C x 256, int64: how often each channel of n x C x H x W uint8 images has each value."""
    return torch.stack(
        [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    )


def statistics(counts: Tensor) -> Statistics:
    """Mean and standard deviation from `value_counts`.

    Exact, and without a float copy of the images. A constant channel gets the std of one step of
    256, so that it can be divided by.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in counts:
        share = channel.double() / channel.sum()
        mean = (share * values).sum()
        variance = (share * (values - mean).square()).sum()
        means.append(mean.item())
        stds.append(max(variance.sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)
