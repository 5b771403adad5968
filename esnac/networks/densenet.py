"""DenseNet for small images (Huang et al. 2017, arXiv 1608.06993), of growth rate 12.

DenseNet-40 is the plain one, DenseNet-100 the one with bottlenecks and compression (DenseNet-BC).
Both begin with 24 channels, twice the growth rate, as the network that network slimming prunes
(Liu et al. 2017, arXiv 1708.06519); the paper's plain ones begin with 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esnac.networks.initialisation import initialise

GROWTH = 12


class DenseLayer(nn.Module):
    """The input and, side by side with it, GROWTH new channels of norm, ReLU, 3x3 convolution.

    With a bottleneck of `mid` channels, a norm, ReLU and 1x1 convolution come first.
    """

    def __init__(self, in_channels: int, mid: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        if mid is not None:
            self.layers.extend([nn.BatchNorm2d(in_channels), nn.ReLU()])
            self.layers.append(nn.Conv2d(in_channels, mid, 1, bias=False))
            in_channels = mid
        self.layers.extend([nn.BatchNorm2d(in_channels), nn.ReLU()])
        self.layers.append(nn.Conv2d(in_channels, GROWTH, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


def _transition(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Halves the image, rounding up."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    # Rounding up keeps a 1x1 image; at even sizes it changes nothing.
    return [nn.BatchNorm2d(in_channels), nn.ReLU(), conv, nn.AvgPool2d(2, ceil_mode=True)]


class DenseNet(nn.Module):
    """Stem, three blocks of dense layers with transitions between them, global pool, classifier.

    `bottleneck`: dense layers of two convolutions (the first makes 4 GROWTH channels), and
    transitions that keep half of the channels. Input n x in_channels x H x W, output
    n x num_classes logits.
    """

    def __init__(self, depth: int, bottleneck: bool, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 2 * GROWTH
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.features = nn.Sequential()
        for block in range(3):
            if block > 0:
                kept = channels // 2 if bottleneck else channels
                self.features.extend(_transition(channels, kept))
                channels = kept
            for _ in range((depth - 4) // (6 if bottleneck else 3)):
                self.features.append(DenseLayer(channels, 4 * GROWTH if bottleneck else None))
                channels += GROWTH
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.features(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))


def densenet40(num_classes: int, in_channels: int = 3) -> DenseNet:
    return DenseNet(40, False, num_classes, in_channels)


def densenet100(num_classes: int, in_channels: int = 3) -> DenseNet:
    return DenseNet(100, True, num_classes, in_channels)
