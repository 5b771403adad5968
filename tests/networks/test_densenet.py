from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.densenet import DenseLayer, densenet40, densenet100


@pytest.mark.parametrize("mid", [None, 48])
def test_new_channels_come_after_the_input(mid: int | None) -> None:
    torch.manual_seed(0)
    layer = DenseLayer(5, mid).eval()
    x = torch.randn(2, 5, 4, 4)
    out = layer(x)
    assert out.shape == (2, 17, 4, 4)
    assert torch.equal(out[:, :5], x)
    assert out[:, 5:].any()


@pytest.mark.parametrize(("build", "depth"), [(densenet40, 40), (densenet100, 100)])
def test_depth_counts_convolutions_and_the_classifier(build, depth: int) -> None:
    with torch.device("meta"):
        modules = list(build(10).modules())
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in modules) == depth


@pytest.mark.parametrize(
    ("build", "widths"), [(densenet40, [168, 312, 456]), (densenet100, [216, 300, 342])]
)
def test_widths_at_the_ends_of_the_blocks(build, widths: list[int]) -> None:
    """24 channels, 12 more per layer; DenseNet-100 drops half of them twice."""
    with torch.device("meta"):
        network = build(10)
    kept = [m for m in network.features if isinstance(m, nn.Conv2d)]
    assert [conv.in_channels for conv in kept] + [network.fc.in_features] == widths


@pytest.mark.parametrize(("side", "last"), [(32, 8), (8, 2), (7, 2)])
def test_last_maps(side: int, last: int) -> None:
    with torch.device("meta"):
        network = densenet40(10).eval()
        maps = network.features(network.conv(torch.empty(1, 3, side, side)))
    assert maps.shape[2:] == (last, last)
