from __future__ import annotations

import torch
from torch import nn

from esnac.networks.mobilenet import InvertedResidual, mobilenetv2


def test_residual_only_where_the_shape_stays() -> None:
    x = torch.randn(2, 8, 6, 6)
    for out_channels, stride, residual in ((8, 1, True), (8, 2, False), (12, 1, False)):
        block = InvertedResidual(8, out_channels, 6, stride).eval()
        nn.init.zeros_(block.layers[-1].weight)
        out = block(x)
        assert torch.equal(out, x if residual else torch.zeros_like(out))


def test_projection_is_linear() -> None:
    torch.manual_seed(0)
    out = InvertedResidual(8, 12, 6, 1).eval()(torch.randn(2, 8, 6, 6))
    assert (out < 0).any()


def test_blocks() -> None:
    """Table 2: 17 blocks, 10 of them residual; the first has no expansion; 32x32 ends at 4x4."""
    network = mobilenetv2(10).eval()
    assert len(network.blocks) == 17
    assert sum(block.residual for block in network.blocks) == 10
    assert [len(block.layers) for block in network.blocks] == [5] + [8] * 16
    assert sum(isinstance(m, nn.ReLU6) for m in network.modules()) == 35
    with torch.no_grad():
        assert network.blocks(network.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 320, 4, 4)
