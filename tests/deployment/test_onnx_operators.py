from __future__ import annotations

import pytest
import torch

from esnac.deployment.onnx_operators import KnownOperations, fake_quantize


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-8, 7)])
def test_rounding_to_levels_is_torchs_own(low: int, high: int) -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    x[:100] = torch.arange(-50, 50) * 0.5 * 0.137  # on and between levels
    scale, zero = torch.tensor([0.137]), torch.zeros(1, dtype=torch.int32)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
    assert torch.equal(fake_quantize(x, scale, zero, low, high), expected)
    with KnownOperations():
        found = torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)
    assert torch.equal(found, expected)
