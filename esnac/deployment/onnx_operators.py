"""Operations of torch that its exporter to ONNX lacks, in terms of those that it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class KnownOperations(TorchFunctionMode):
    """Inside, networks compute the same by operations that can be exported."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.fake_quantize_per_tensor_affine:
            func = fake_quantize
        return func(*args, **(kwargs or {}))


def fake_quantize(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | int, quant_min: int, quant_max: int
) -> Tensor:
    """(clamp(round(x / scale) + zero, min, max) - zero) * scale, as torch computes it: by a product
    with the reciprocal, and halves to even."""
    scale = torch.as_tensor(scale, dtype=x.dtype)
    zero = torch.as_tensor(zero_point).to(x.dtype)
    level = torch.round(x * scale.reciprocal() + zero)
    return (level.clamp(quant_min, quant_max) - zero) * scale
