from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import ExifTags, Image

from esnac.data import decode as module
from esnac.data.decode import decode
from esnac.errors import DataError

RNG = numpy.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
GREY = RNG.integers(0, 256, (8, 8), dtype=numpy.uint8)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def one(image: Image.Image, size: int = 8) -> torch.Tensor:
    return decode([encoded(image)], ["x"], size)[0]


def test_the_right_size_is_untouched() -> None:
    assert torch.equal(one(Image.fromarray(RGB)), torch.from_numpy(RGB).permute(2, 0, 1))
    assert torch.equal(one(Image.fromarray(GREY)), torch.from_numpy(GREY)[None])


def test_grey_beside_rgb_becomes_rgb() -> None:
    blobs = [encoded(Image.fromarray(array)) for array in (GREY, RGB, GREY)]
    images = decode(blobs, ["x"] * 3, 8)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(images[2], torch.from_numpy(GREY).expand(3, 8, 8))
    assert torch.equal(images[1], torch.from_numpy(RGB).permute(2, 0, 1))


def test_other_modes() -> None:
    expected = torch.from_numpy(RGB).permute(2, 0, 1)
    assert torch.equal(one(Image.fromarray(RGB).convert("RGBA")), expected)
    assert one(Image.fromarray(RGB).convert("P")).shape == (3, 8, 8)
    assert one(Image.fromarray(GREY).convert("1")).unique().tolist() == [0, 255]
    # 16 bits are scaled, not clipped: 257 * v is v once more in 8 bits
    deep = Image.fromarray(GREY.astype(numpy.uint16) * 257)
    assert torch.equal(one(deep), torch.from_numpy(GREY)[None])


def test_scaled_to_cover_and_cropped_in_the_centre() -> None:
    wide = numpy.zeros((16, 48), dtype=numpy.uint8)
    wide[:, 16:32] = 200  # the square in the middle is all that is left
    small = one(Image.fromarray(wide))[0]
    assert (small[:, 2:-2] == 200).all()
    assert small.min() > 180  # bicubic reaches over the border by a little


@pytest.mark.parametrize("side", [8, 20])
def test_images_are_turned_as_their_exif_says(side: int) -> None:
    """Orientation 6: the left column is the top row of the scene, to be turned clockwise."""
    stored = numpy.zeros((side, side), dtype=numpy.uint8)
    stored[:, : side // 2] = 200
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    (turned,) = decode([file.getvalue()], ["x"], 8)
    assert turned[0, :3].min() > 180
    assert turned[0, 5:].max() < 20


def test_threads_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THREADS_FROM", 0)
    files = []
    for value in range(200):
        files.append(tmp_path / f"{value}.png")
        Image.new("L", (4, 4), value).save(files[-1])
    assert decode(files, list(map(str, files)), 4)[:, 0, 0, 0].tolist() == list(range(200))


@pytest.mark.parametrize("threads_from", [0, 10**9])
def test_the_unreadable_image_is_named(
    threads_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "THREADS_FROM", threads_from)
    good = encoded(Image.fromarray(RGB))
    bad: list[bytes | Path | None] = [
        b"",
        b"no image",
        good[:-30],
        good[:40],
        None,
        tmp_path / "none.png",
    ]
    for blob in bad:
        with pytest.raises(DataError, match=r"image bad\.png"):
            decode([good, blob], ["good.png", "bad.png"], 8)
