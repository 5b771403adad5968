"""Logits and accuracy on a set, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esnac.data.batches import evaluation_batches
from esnac.data.sets import DataSet, Images
from esnac.errors import DataError
from esnac.runtime import evaluating, inference_batch


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, data: DataSet) -> float:
    """Fraction in [0, 1] of `images` whose largest logit is that of the label.

    `model` and `images` lie on the same device; `data` says how to normalise. Float32 whatever the
    training used: the figure of a trained student is that of its file. Raises DataError when there
    are no images.
    """
    _require_images(images, data)
    right = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    with evaluating(model), _without_tf32():
        for inputs, labels in evaluation_batches(
            images, data, _batch(images, data), memory_format=torch.channels_last
        ):
            right += (model(inputs).argmax(dim=1) == labels).sum()
    return right.item() / len(images)


@torch.no_grad()
def logits(model: nn.Module, images: Images, data: DataSet) -> Tensor:
    """N x classes logits (float32) of `images` in order, as `accuracy` sees them."""
    _require_images(images, data)
    with evaluating(model), _without_tf32():
        batches = evaluation_batches(
            images, data, _batch(images, data), memory_format=torch.channels_last
        )
        return torch.cat([model(inputs).float() for inputs, _ in batches])


def _batch(images: Images, data: DataSet) -> int:
    return inference_batch(images.labels.device, data.input_shape)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Float32 with all of its bits: cuDNN by default convolves with 10 bits of mantissa (TF32)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _require_images(images: Images, data: DataSet) -> None:
    if not len(images):
        raise DataError(f"{data.name}: no images to evaluate on. Ask for a larger split.")
