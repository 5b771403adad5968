from __future__ import annotations

import torch
from torch import nn

from esnac.networks.wide_resnet import WideBlock, wrn16_4


def test_sum_is_not_activated() -> None:
    block = WideBlock(8, 8, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)


def test_shortcut_reads_the_activated_input() -> None:
    block = WideBlock(4, 6, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    assert block.shortcut is not None
    x = torch.randn(2, 4, 8, 8)
    active = (x / (1 + block.bn1.eps) ** 0.5).relu()[:, :, ::2, ::2]
    expected = torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], active)
    torch.testing.assert_close(block(x), expected)


def test_widths_and_depth() -> None:
    """WRN-16-4: 16 - 4 convolutions in blocks of two, 64, 128, 256 channels, 8x8 at the end."""
    network = wrn16_4(10).eval()
    assert [len(stage) for stage in network.stages] == [2, 2, 2]
    with torch.no_grad():
        maps = network.stages(network.conv1(torch.zeros(1, 3, 32, 32)))
    assert maps.shape == (1, 256, 8, 8)
    assert [stage[0].conv1.out_channels for stage in network.stages] == [64, 128, 256]
