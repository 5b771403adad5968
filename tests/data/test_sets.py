from __future__ import annotations

import pytest
import torch

from esnac.data import ImageSet
from esnac.errors import DataError

IMAGES = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
LABELS = torch.tensor([0, 1, 2, 1, 0])


def test_subset_in_the_order_asked_for() -> None:
    part = ImageSet(IMAGES, LABELS).subset(torch.tensor([4, 1]))
    assert len(part) == 2
    assert part.images[:, 0, 0, 0].tolist() == [4, 1]
    assert part.labels.tolist() == [0, 1]


def test_to() -> None:
    moved = ImageSet(IMAGES, LABELS).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES.float(), LABELS),
        (IMAGES[0], LABELS),
        (IMAGES, LABELS[:4]),
        (IMAGES, LABELS.int()),
        (IMAGES, LABELS.view(5, 1)),
    ],
)
def test_wrong_tensors(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="got"):
        ImageSet(images, labels)
