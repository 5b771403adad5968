"""An ONNX file whose weights lie packed in 8, 4 or 2 bits, for any onnxruntime.

    weight = codes * scale, by DequantizeLinear, with one scale or one per output channel

This saves bytes, not time: the runtime computes in float32. INT4 needs opset 21, INT2 opset 25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esnac import files
from esnac.deployment.extras import require_extra
from esnac.errors import EsnacError, UnknownNameError

#: Opset that brings the type of so many bits (a signed integer) to DequantizeLinear.
OPSETS = {8: 21, 4: 21, 2: 25}

#: The newest format of the file that onnxruntime 1.31 loads; onnx itself writes newer ones.
_IR_VERSION = 13

#: Largest difference of a weight to codes * scale, in units of the largest weight.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class IntegerWeight:
    """`codes` (int8, shaped like the weight, -2**(bits - 1) .. 2**(bits - 1) - 1) times `scale`
    (float32, 1 value or one per output channel)."""

    codes: np.ndarray
    scale: np.ndarray
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in OPSETS:
            raise EsnacError(f"ONNX packs weights in 2, 4 or 8 bits; got {self.bits}.")
        if self.codes.dtype != np.int8 or self.codes.ndim < 2:
            found = f"{self.codes.shape} of {self.codes.dtype}"
            raise EsnacError(f"Codes are int8 in two dimensions or more; got {found}.")
        least, most = self.codes.min(initial=0), self.codes.max(initial=0)
        if least < -(2 ** (self.bits - 1)) or most >= 2 ** (self.bits - 1):
            raise EsnacError(f"Codes from {least} to {most} do not fit {self.bits} bits.")
        if self.scale.dtype != np.float32 or self.scale.shape not in ((1,), self.codes.shape[:1]):
            raise EsnacError(
                "Scales are one float32 or one per output channel; buckets have no form in ONNX. "
                f"Got {self.scale.shape} of {self.scale.dtype} for {self.codes.shape}."
            )


def pack(source: Path, target: Path, weights: Mapping[str, IntegerWeight]) -> None:
    """Writes `target`: the float32 file `source` with the named weights as integers.

    The exporter folds norms into weights, which multiplies each output channel by a factor; it goes
    into the scales. Raises EsnacError for a name that is no weight of the file, for values that are
    not codes * scale, and when nothing is named.
    """
    require_extra("onnx")
    import onnx
    import onnx.version_converter

    if not weights:
        raise EsnacError("No integer weights to pack. Quantise the student first.")
    opset = max(OPSETS[weight.bits] for weight in weights.values())
    model = onnx.version_converter.convert_version(onnx.load(source), opset)
    model.ir_version = _IR_VERSION
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    for name in weights:
        if name not in held:
            raise UnknownNameError("weight of the ONNX file", name, held)
    nodes = [_unpack(graph, held[name], weight) for name, weight in weights.items()]
    nodes += list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    files.write(target, lambda place: onnx.save(model, place), parents=True)


def _unpack(graph: Any, tensor: Any, weight: IntegerWeight) -> Any:
    """Puts codes and scale in the place of `tensor`; gives the node that multiplies them."""
    from onnx import helper, numpy_helper

    name = tensor.name
    scale = _scales(name, numpy_helper.to_array(tensor), weight)
    codes, scales = f"{name}_codes", f"{name}_scale"
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(weight.codes.astype(_dtype(weight)), codes))
    graph.initializer.append(numpy_helper.from_array(scale, scales))
    axis: dict[str, Any] = {"axis": 0} if scale.ndim else {}
    return helper.make_node("DequantizeLinear", [codes, scales], [name], **axis)


def _dtype(weight: IntegerWeight) -> Any:
    import ml_dtypes

    return {8: np.int8, 4: ml_dtypes.int4, 2: ml_dtypes.int2}[weight.bits]


def _scales(name: str, values: np.ndarray, weight: IntegerWeight) -> np.ndarray:
    """The scales by which the codes give `values`: one per channel, or one for all of them."""
    if values.shape != weight.codes.shape:
        raise EsnacError(
            f"Weight {name!r} is {values.shape} in the ONNX file and {weight.codes.shape} here."
        )
    rows = len(values)
    exact = weight.codes.reshape(rows, -1).astype(np.float64) * weight.scale[:, None]
    real = values.reshape(rows, -1).astype(np.float64)
    limit = _TOLERANCE * np.abs(real).max(initial=0)
    if np.abs(real - exact).max(initial=0) <= limit:
        single = len(weight.scale) == 1
        return weight.scale.reshape(()) if single else weight.scale
    squares = (exact**2).sum(axis=1)
    factors = (real * exact).sum(axis=1) / np.where(squares > 0, squares, 1)
    if np.abs(real - exact * factors[:, None]).max(initial=0) > limit:
        raise EsnacError(
            f"Weight {name!r} is not its codes times a scale per output channel, so it has no "
            "integer form in ONNX. Quantise per tensor or channel, with levels around zero."
        )
    folded: np.ndarray = (factors * weight.scale).astype(np.float32)
    return folded
