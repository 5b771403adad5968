"""ShuffleNet v1 with two groups for small images (Zhang et al. 2017, arXiv 1707.01083).

The stem is a 1x1 convolution of stride 1 without a pool. Unlike the paper's unit (figure 2c), the
shortcut of a downsampling unit also has a grouped 1x1 convolution: this is the teacher of the
published search (Cao et al. 2019, arXiv 1902.00383), with its parameter and layer counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esnac.networks.initialisation import initialise

STEM = 24
GROUPS = 2


class Bottleneck(nn.Module):
    """1x1 grouped, shuffle, 3x3 depthwise, 1x1 grouped; the part that both kinds of unit share.

    No ReLU follows the depthwise convolution (section 3.2).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        mid = out_channels // 4
        # The stem has too few channels to split them into groups, as in the paper's stage 2.
        groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(GROUPS)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(self.relu(self.bn1(self.conv1(x))))
        return self.bn3(self.conv3(self.bn2(self.conv2(x))))


class BasicUnit(nn.Module):
    """relu(bottleneck(x) + x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(channels, channels, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bottleneck(x) + x)


class DownsamplingUnit(nn.Module):
    """relu(concat(bottleneck(x), shortcut(x))): halves the image, widens to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(in_channels, out_channels - in_channels, 2)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.conv = nn.Conv2d(in_channels, in_channels, 1, groups=GROUPS, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(torch.cat([self.bottleneck(x), self.conv(self.pool(x))], dim=1))


class ShuffleNet(nn.Module):
    """Stages of 4, 8 and 4 units with 200, 400 and 800 channels.

    Input n x in_channels x H x W, output n x num_classes logits.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        channels = STEM
        for units, width in ((4, 200), (8, 400), (4, 800)):
            stage = nn.Sequential(DownsamplingUnit(channels, width))
            stage.extend(BasicUnit(width) for _ in range(units - 1))
            self.stages.append(stage)
            channels = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))


def shufflenet(num_classes: int, in_channels: int = 3) -> ShuffleNet:
    return ShuffleNet(num_classes, in_channels)
