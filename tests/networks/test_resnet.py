from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.resnet import BasicBlock, resnet18, resnet20


def test_identity_block_without_residual_is_relu() -> None:
    block = BasicBlock(8, 8, 1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 8, 5, 5)
    assert len(block.shortcut) == 0
    assert torch.equal(block(x), x.relu())


def test_projection_is_a_strided_1x1_convolution_with_norm() -> None:
    block = BasicBlock(4, 6, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    conv, norm = block.shortcut
    nn.init.constant_(norm.bias, 0.5)
    x = torch.randn(2, 4, 8, 8)
    picked = torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    expected = (picked / (1 + norm.eps) ** 0.5 + 0.5).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_last_maps(side: int) -> None:
    """Three halvings in ResNet-18, two in ResNet-20, rounding up; no max pool in the stem."""
    images = torch.zeros(1, 3, side, side)
    for network, halvings in ((resnet18(10), 3), (resnet20(10), 2)):
        network.eval()
        with torch.no_grad():
            maps = network.stages(network.conv1(images))
        expected = -(-side // 2**halvings)
        assert maps.shape[2:] == (expected, expected)
