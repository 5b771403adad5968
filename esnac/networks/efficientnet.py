"""EfficientNet-B0 and -B1 (Tan and Le 2019, arXiv 1905.11946), for small images or 224x224.

For small images the stem and the stage of 24 channels have stride 1, as in our MobileNetV2: 32x32
ends at 4x4. The networks named `_224` have the published strides. Neither drops anything in
training: no dropout before the classifier, no stochastic depth.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from esnac.networks.initialisation import initialise
from esnac.networks.layers import conv_norm

# Table 1: expansion, channels, blocks, stride of the first block, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD = 32, 1280

#: Depth multiplier of B1 (its width stays 1.0).
B1_DEPTH = 1.1


class SqueezeExcite(nn.Module):
    """Channels scaled by what two 1x1 convolutions make of their means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.silu = nn.SiLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(self.silu(self.reduce(self.pool(x))))
        return x * self.sigmoid(scale)


class MBConv(nn.Module):
    """1x1 expansion, depthwise, squeeze-excite, linear 1x1 projection; plus the input if it fits.

    The squeeze keeps a quarter of the block's input channels, not of the expanded ones.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        mid = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential()
        if expansion > 1:
            self.layers.extend([*conv_norm(in_channels, mid), nn.SiLU()])
        self.layers.extend([*conv_norm(mid, mid, kernel, stride, groups=mid), nn.SiLU()])
        self.layers.append(SqueezeExcite(mid, max(1, in_channels // 4)))
        self.layers.extend(conv_norm(mid, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return out + x if self.residual else out


class EfficientNet(nn.Module):
    """Input n x in_channels x H x W, output n x num_classes logits.

    `depth` multiplies the blocks of every stage, rounding up. `small`: strides for small images.
    """

    def __init__(self, num_classes: int, in_channels: int, depth: float, small: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(in_channels, STEM, 3, 1 if small else 2), nn.SiLU())
        self.blocks = nn.Sequential()
        channels = STEM
        for expansion, width, count, stride, kernel in STAGES:
            first = 1 if small and width == 24 else stride
            for block in range(math.ceil(count * depth)):
                step = first if block == 0 else 1
                self.blocks.append(MBConv(channels, width, expansion, step, kernel))
                channels = width
        self.head = nn.Sequential(*conv_norm(channels, HEAD), nn.SiLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(HEAD, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.flatten(self.pool(x)))


def efficientnet_b0(num_classes: int, in_channels: int = 3) -> EfficientNet:
    return EfficientNet(num_classes, in_channels, 1.0, small=True)


def efficientnet_b1(num_classes: int, in_channels: int = 3) -> EfficientNet:
    return EfficientNet(num_classes, in_channels, B1_DEPTH, small=True)


def efficientnet_b0_224(num_classes: int, in_channels: int = 3) -> EfficientNet:
    return EfficientNet(num_classes, in_channels, 1.0, small=False)


def efficientnet_b1_224(num_classes: int, in_channels: int = 3) -> EfficientNet:
    return EfficientNet(num_classes, in_channels, B1_DEPTH, small=False)
