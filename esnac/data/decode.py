"""Image files, or their bytes, to one uint8 tensor; Pillow in threads."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esnac.errors import DataError

#: Images per task of a thread: large enough that handing over costs nothing.
CHUNK = 64
#: Mean bytes per encoded image from which threads help. Below, Pillow spends its time in Python:
#: 5,000 JPEGs of 32x32 take 0.85 s on one thread and 1.1 s on two (measured, two cores).
THREADS_FROM = 8192


def decode(
    blobs: Sequence[bytes | Path | None],
    names: Sequence[str],
    size: int,
    threads: int | None = None,
) -> Tensor:
    """n x C x size x size, uint8; C is 1 when all images are grey, else 3.

    `blobs` are encoded images or files of such; `names` say which one an error is about. Other
    sizes are scaled (bicubic) to cover the square and cropped in the centre. `threads` None: as
    many as help. Raises DataError for an unreadable image.
    """
    if not blobs:
        raise DataError("There is no image to decode.")
    starts = range(0, len(blobs), CHUNK)

    def chunk(start: int) -> Tensor:
        part = slice(start, start + CHUNK)
        return _stack([_one(*pair, size) for pair in zip(blobs[part], names[part], strict=True)])

    if threads is None:
        threads = 1 if _mean_bytes(blobs) < THREADS_FROM else min(8, os.cpu_count() or 1)
    if threads == 1:
        chunks = [chunk(start) for start in starts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            try:
                chunks = list(pool.map(chunk, starts))
            except DataError:
                pool.shutdown(cancel_futures=True)
                raise
    channels = max(part.shape[1] for part in chunks)
    return torch.cat([part.expand(-1, channels, -1, -1) for part in chunks])


def _mean_bytes(blobs: Sequence[bytes | Path | None]) -> float:
    """Of a hundred of them, spread over all."""
    some = [blob for blob in blobs[:: max(1, len(blobs) // 100)] if blob is not None]
    sizes = [
        len(blob) if isinstance(blob, bytes) else blob.stat().st_size if blob.is_file() else 0
        for blob in some
    ]
    return sum(sizes) / max(1, len(sizes))


def _one(blob: bytes | Path | None, name: str, size: int) -> Any:
    """size x size (grey) or size x size x 3, a uint8 numpy array."""
    import numpy
    from PIL import Image, ImageOps

    if blob is None:
        raise DataError(f"The image {name} has no bytes.")
    try:
        with Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob) as image:
            if image.size != (size, size):
                # A JPEG can be decoded at 1/2, 1/4 or 1/8: far faster for photographs.
                image.draft(None, (2 * size, 2 * size))
            ImageOps.exif_transpose(image, in_place=True)
            upright = _eight_bits(image)
            if upright.size != (size, size):
                upright = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
            return numpy.asarray(upright)
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        if "cannot identify" in reason:
            reason = "it is no image of a known format"
        raise DataError(f"Cannot read the image {name}: {reason}.") from None


def _eight_bits(image: Any) -> Any:
    """Any mode of Pillow as "L" or "RGB"; transparency is dropped."""
    from PIL import Image

    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bits grey; convert("L") would clip instead of scale
        import numpy

        return Image.fromarray(
            (numpy.asarray(image).astype("int64") >> 8).clip(0, 255).astype("uint8")
        )
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _stack(arrays: list[Any]) -> Tensor:
    """k x C x size x size from arrays that may mix grey and RGB."""
    import numpy

    if all(array.ndim == 2 for array in arrays):
        return torch.from_numpy(numpy.stack(arrays)).unsqueeze(1)
    rgb = [array if array.ndim == 3 else numpy.repeat(array[..., None], 3, -1) for array in arrays]
    return torch.from_numpy(numpy.stack(rgb)).permute(0, 3, 1, 2).contiguous()
