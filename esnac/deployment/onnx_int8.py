"""An ONNX file in 8 bits: weights int8 per channel, activations uint8 by the ranges of images.

Static quantisation by onnxruntime with QuantizeLinear and DequantizeLinear around each layer. Of
the combinations this one is fast (measured: int8 activations are slower than float32, uint8 weights
gain next to nothing).

Weights use 7 of the 8 bits. Processors without VNNI add pairs of products in 16 bits, which
saturate with all 8: a digits network lost 1 to 17 points of accuracy there (AVX2), and none with 7.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esnac import files
from esnac.deployment import onnx_session
from esnac.deployment.extras import require_extra
from esnac.deployment.onnx_export import without_notes
from esnac.errors import EsnacError

#: Images that go through the network at a time while ranges are taken.
_BATCH = 32


def quantize(source: Path, target: Path, images: np.ndarray) -> int:
    """Writes `target`, the float32 file `source` in 8 bits; gives its number of 8-bit convolutions.

    `images` (N x C x H x W, float32, normalised) are training images; 32 were enough on digits.
    Raises EsnacError when there are none, and when a convolution stays float: such a file is
    slower than `source`.
    """
    require_extra("onnx")
    import onnx

    if not len(images):
        raise EsnacError("No images to take the ranges of activations from. Give 32 or more.")
    wanted = onnx_session.operators(source)["Conv"]
    files.write(target, lambda place: _quantize(source, place, images), parents=True)
    model = without_notes(onnx.load(target))
    files.write(target, lambda place: onnx.save(model, place))
    found = onnx_session.optimised_operators(target)["QLinearConv"]
    if found < wanted:
        target.unlink()
        raise EsnacError(
            f"Only {found} of {wanted} convolutions of {source.name} would run in 8 bits. "
            "Export it to float32 ONNX instead."
        )
    return found


def _quantize(source: Path, target: Path, images: np.ndarray) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._at = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = images[self._at : self._at + _BATCH]
            self._at += _BATCH
            return {onnx_session.INPUT: part} if len(part) else None

    with _without_advice():
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            reduce_range=True,
        )


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """The library advises to fold norms first, on the root logger; they are folded already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
