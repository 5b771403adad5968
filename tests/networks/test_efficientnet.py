from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.efficientnet import (
    MBConv,
    SqueezeExcite,
    efficientnet_b0,
    efficientnet_b0_224,
    efficientnet_b1,
)


def test_squeeze_excite_scales_channels_by_their_means() -> None:
    torch.manual_seed(0)
    part = SqueezeExcite(6, 2)
    x = torch.randn(3, 6, 4, 5)
    squeezed = x.mean((2, 3)) @ part.reduce.weight[:, :, 0, 0].T + part.reduce.bias
    squeezed = squeezed / (1 + (-squeezed).exp())
    gate = squeezed @ part.expand.weight[:, :, 0, 0].T + part.expand.bias
    expected = x / (1 + (-gate).exp())[:, :, None, None]
    torch.testing.assert_close(part(x), expected)


def test_squeeze_keeps_a_quarter_of_the_input_channels() -> None:
    squeeze = next(m for m in MBConv(24, 40, 6, 2, 5).modules() if isinstance(m, SqueezeExcite))
    assert (squeeze.reduce.in_channels, squeeze.reduce.out_channels) == (144, 6)


def test_residual_only_where_the_shape_stays() -> None:
    assert [MBConv(16, out, 6, stride, 3).residual for out, stride in [(16, 1), (16, 2), (24, 1)]]\
        == [True, False, False]  # fmt: skip
    block = MBConv(16, 16, 6, 1, 3).eval()
    nn.init.zeros_(block.layers[-1].weight)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("build", "side", "last"),
    [(efficientnet_b0, 32, 4), (efficientnet_b0, 8, 1), (efficientnet_b0_224, 224, 7)],
)
def test_last_maps(build, side: int, last: int) -> None:
    with torch.device("meta"):
        network = build(10).eval()
        maps = network.blocks(network.stem(torch.empty(1, 3, side, side)))
    assert maps.shape[1:] == (320, last, last)


@pytest.mark.parametrize(("build", "blocks"), [(efficientnet_b0, 16), (efficientnet_b1, 23)])
def test_blocks(build, blocks: int) -> None:
    with torch.device("meta"):
        assert len(build(10).blocks) == blocks
