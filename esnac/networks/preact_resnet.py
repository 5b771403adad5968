"""Pre-activation bottleneck ResNet for small images (He et al. 2016, arXiv 1603.05027).

The network that network slimming prunes (Liu et al. 2017, arXiv 1708.06519): the 1x1 shortcuts read
a block's input as it is, before the first norm.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.networks.initialisation import initialise

EXPANSION = 4


class PreactBottleneck(nn.Module):
    """Norm, ReLU and convolution three times (1x1, 3x3, 1x1), plus the input.

    `width`: channels of the first two convolutions; the third makes four times as many.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.conv3(self.relu3(self.bn3(out)))
        return out + self.shortcut(x)


class PreactResNet(nn.Module):
    """Stem, three stages of n blocks (16, 32, 64 channels, four times that between blocks), pool.

    `depth` is 9 n + 2: three convolutions per block, the stem and the classifier. Input
    n x in_channels x H x W, output n x num_classes logits. Raises EsnacError for another depth.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        require_depth(depth)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        channels = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            stage = nn.Sequential()
            for block in range((depth - 2) // 9):
                stage.append(PreactBottleneck(channels, width, stride if block == 0 else 1))
                channels = EXPANSION * width
            self.stages.append(stage)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stages(self.conv1(x))))
        return self.fc(self.flatten(self.pool(x)))


def require_depth(depth: int) -> None:
    """Raises EsnacError, naming the nearest depth that exists, unless `depth` is 9 n + 2."""
    if depth < 11 or depth % 9 != 2:
        nearest = 9 * max(1, round((depth - 2) / 9)) + 2
        raise EsnacError(
            "A pre-activation bottleneck ResNet has 9 n + 2 layers (11, 20, 29, 38, ...); there is "
            f"none of {depth}. The nearest depth is {nearest}; registered are 38, 92 and 164."
        )


def require_name(name: str) -> None:
    """`require_depth` of "preact_resnet<depth>"; other names pass."""
    if found := re.fullmatch(r"preact_?resnet_?(\d{1,6})", name):
        require_depth(int(found[1]))


def preact_resnet38(num_classes: int, in_channels: int = 3) -> PreactResNet:
    return PreactResNet(38, num_classes, in_channels)


def preact_resnet92(num_classes: int, in_channels: int = 3) -> PreactResNet:
    return PreactResNet(92, num_classes, in_channels)


def preact_resnet164(num_classes: int, in_channels: int = 3) -> PreactResNet:
    return PreactResNet(164, num_classes, in_channels)
