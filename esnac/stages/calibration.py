"""Training images from which a stage gathers ranges, statistics or gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor

from esnac.data.batches import training_batches
from esnac.runtime import torch_generator
from esnac.stages._base import StageContext

#: How many images, and how many at a time.
IMAGES, BATCH = 1200, 100


def batches(
    context: StageContext, purpose: str, count: int = IMAGES // BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `count` batches of inputs and labels, not augmented, by chance for each `purpose`."""
    order = torch_generator(context.seed, purpose, context.index)
    found = training_batches(
        context.data, BATCH, order_generator=order, augmentation_seed=None, epoch=0
    )
    for inputs, labels, _ in islice(found, count):
        yield inputs, labels
