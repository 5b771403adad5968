from __future__ import annotations

import pytest
import torch

from esnac import data
from esnac.data import DataSettings
from esnac.errors import DataError

LABELS = torch.arange(60) % 3
FLOATS = torch.rand(60, 1, 6, 5, generator=torch.Generator().manual_seed(0))


def test_floats_are_rounded_to_bytes_and_nothing_is_augmented() -> None:
    own = data.from_tensors((FLOATS, LABELS), (FLOATS[:9], LABELS[:9]))
    assert (len(own.train), len(own.validation), len(own.test)) == (54, 6, 9)
    assert (own.name, own.num_classes, own.padding, own.flip) == ("custom", 3, 0, False)
    assert own.input_shape == (1, 6, 5)
    assert torch.equal(own.test.images, (FLOATS[:9] * 255).round().byte())


def test_without_a_test_set_a_fifth_is_cut() -> None:
    own = data.from_tensors((FLOATS, LABELS.int()), settings=DataSettings(padding=1, flip=True))
    assert (len(own.train), len(own.validation), len(own.test)) == (43, 5, 12)
    assert torch.bincount(own.test.labels).tolist() == [4, 4, 4]
    assert (own.padding, own.flip) == (1, True)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (FLOATS * 255, LABELS, r"lie in \[0, 1\]"),
        (FLOATS / 0 * 0, LABELS, r"lie in \[0, 1\]; got nan"),
        (FLOATS - 0.5, LABELS, r"lie in \[0, 1\]"),
        (FLOATS[0], LABELS, "n x C x H x W"),
        (FLOATS[:0], LABELS[:0], "n > 0"),
        ((FLOATS * 255).int(), LABELS, "uint8 or floats"),
        (FLOATS, LABELS[:59], "60 images, but labels"),
        (FLOATS, LABELS.float(), "whole numbers"),
        (FLOATS, LABELS - 1, "start at 0; got -1"),
    ],
)
def test_what_cannot_be_used(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.from_tensors((images, labels))


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        data.from_tensors((FLOATS, LABELS), (FLOATS[..., :4], LABELS))
    with pytest.raises(DataError, match="label 2 is beyond 2 classes"):
        data.from_tensors((FLOATS, LABELS), class_names=("a", "b"))
