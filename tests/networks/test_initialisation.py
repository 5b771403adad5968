from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.initialisation import initialise


@pytest.mark.parametrize(
    ("conv", "fan_in"),
    [
        (nn.Conv2d(64, 128, 3), 64 * 9),
        (nn.Conv2d(512, 64, 1), 512),
        (nn.Conv2d(128, 256, 1, groups=2), 64),
        (nn.Conv2d(2048, 2048, 3, groups=2048), 9),
    ],
    ids=["3x3", "1x1", "grouped", "depthwise"],
)
def test_he_variance(conv: nn.Conv2d, fan_in: int) -> None:
    torch.manual_seed(0)
    initialise(conv)
    # At least 16,384 samples: the standard error of the variance is below 1.2 %.
    assert conv.weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
    assert conv.weight.mean().abs().item() < 4 * (2 / fan_in / conv.weight.numel()) ** 0.5
    assert conv.bias is not None
    assert not conv.bias.any()


def test_keeps_the_signal_through_twenty_layers_without_norm() -> None:
    """The point of the method: E[y^2] after conv + ReLU stays (He et al. 2015, section 2.2)."""
    torch.manual_seed(0)
    layers = [m for _ in range(20) for m in (nn.Conv2d(256, 256, 1), nn.ReLU())]
    network = nn.Sequential(*layers)
    initialise(network)
    images = torch.randn(64, 256, 1, 1)
    with torch.no_grad():
        ratio = network(images).pow(2).mean() * 2 / images.pow(2).mean()
    assert 0.3 < ratio.item() < 3
