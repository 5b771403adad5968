from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esnac.data import augment

IMAGES = torch.randint(
    0, 256, (16, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def plainly(image: Tensor, dy: int, dx: int, flip: bool, padding: int) -> Tensor:
    """Pad with zeros, crop the old size, mirror: as torchvision's transforms do it one by one."""
    height, width = image.shape[1:]
    padded = F.pad(image, (padding,) * 4)
    crop = padded[:, padding + dy :, padding + dx :][:, :height, :width]
    return crop.flip(-1) if flip else crop


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_apply_pads_crops_and_mirrors(padding: int, flip: bool) -> None:
    rows = augment.plan(16, seed=3, epoch=1, padding=padding, flip=flip)
    expected = [
        plainly(image, int(dy), int(dx), bool(mirror), padding)
        for image, dy, dx, mirror in zip(IMAGES, rows.dy, rows.dx, rows.flip, strict=True)
    ]
    assert torch.equal(augment.apply(IMAGES, rows), torch.stack(expected))


def test_apply_by_hand() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8).view(1, 1, 3, 3)
    down_right = augment.Plan(torch.tensor([1]), torch.tensor([1]), torch.tensor([False]), 1)
    assert augment.apply(image, down_right).tolist() == [[[[5, 6, 0], [8, 9, 0], [0, 0, 0]]]]
    mirrored = augment.Plan(torch.tensor([-1]), torch.tensor([0]), torch.tensor([True]), 1)
    assert augment.apply(image, mirrored).tolist() == [[[[0, 0, 0], [3, 2, 1], [6, 5, 4]]]]


def test_a_plan_is_a_function_of_seed_and_epoch() -> None:
    one, again = (augment.plan(500, 1, 2, 4, True) for _ in range(2))
    assert torch.equal(one.dy, again.dy)
    assert torch.equal(one.flip, again.flip)
    for other in (augment.plan(500, 1, 3, 4, True), augment.plan(500, 2, 2, 4, True)):
        assert not torch.equal(one.dy, other.dy)
        assert not torch.equal(one.dx, other.dx)
        assert not torch.equal(one.flip, other.flip)


def test_shifts_are_uniform_and_flips_fair() -> None:
    rows = augment.plan(90_000, 0, 0, 4, True)
    for shifts in (rows.dy, rows.dx):
        # 10,000 of each expected, standard deviation 94
        assert ((torch.bincount(shifts + 4, minlength=9) - 10_000).abs() < 500).all()
    assert abs(int(rows.flip.sum()) - 45_000) < 750  # standard deviation 150
    independent = torch.corrcoef(torch.stack([rows.dy, rows.dx, rows.flip]).float())
    assert (independent - torch.eye(3)).abs().max() < 0.02


def test_rows_are_those_of_the_whole_plan() -> None:
    whole = augment.plan(16, 0, 0, 2, True)
    indices = torch.tensor([5, 0, 11])
    part = augment.apply(IMAGES[indices], whole.rows(indices))
    assert torch.equal(part, augment.apply(IMAGES, whole)[indices])
    assert len(whole.rows(indices)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalise(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    before = IMAGES.clone()
    out = augment.normalise(IMAGES, mean, std, dtype, memory_format)
    shape = (1, 3, 1, 1)
    exact = (IMAGES.double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(IMAGES, before)
