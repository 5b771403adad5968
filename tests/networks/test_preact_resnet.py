from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac import networks
from esnac.errors import EsnacError
from esnac.networks.preact_resnet import PreactBottleneck, PreactResNet


@pytest.mark.parametrize("ask", [lambda name: networks.build(name, 10), networks.family])
@pytest.mark.parametrize("depth", [36, 34])
def test_depths_of_the_literature_s_slips(ask, depth: int) -> None:
    with pytest.raises(EsnacError, match=rf"none of {depth}\. The nearest depth is 38"):
        ask(f"preact_resnet{depth}")


@pytest.mark.parametrize(("depth", "nearest"), [(0, 11), (2, 11), (21, 20), (160, 164)])
def test_other_depths(depth: int, nearest: int) -> None:
    with pytest.raises(EsnacError, match=f"nearest depth is {nearest};"):
        PreactResNet(depth, 10, 3)


def test_depth_counts_convolutions_and_the_classifier() -> None:
    with torch.device("meta"):
        network = PreactResNet(20, 10, 3)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20 + 3, "and three shortcuts"


def test_shortcut_reads_the_input_as_it_is() -> None:
    torch.manual_seed(0)
    block = PreactBottleneck(8, 4, 2).eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 8, 6, 6)
    (conv,) = block.shortcut
    picked = torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(block(x), picked)


def test_identity_where_the_shape_stays() -> None:
    block = PreactBottleneck(16, 4, 1).eval()
    nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 3, 3)
    assert torch.equal(block(x), x)
