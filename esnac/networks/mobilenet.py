"""MobileNetV2 of width 1.0 for small images (Sandler et al. 2018, arXiv 1801.04381).

The layers of table 2, but the stem and the stage of 24 channels have stride 1: 32x32 ends at 4x4.
No dropout before the classifier.
"""

from __future__ import annotations

from torch import Tensor, nn

from esnac.networks.initialisation import initialise
from esnac.networks.layers import conv_norm

# Table 2, columns t (expansion), c (channels), n (blocks), s (stride of the first block).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; plus the input where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        mid = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential()
        if expansion > 1:
            self.layers.extend([*conv_norm(in_channels, mid), nn.ReLU6()])
        self.layers.extend([*conv_norm(mid, mid, 3, stride, groups=mid), nn.ReLU6()])
        self.layers.extend(conv_norm(mid, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return out + x if self.residual else out


class MobileNetV2(nn.Module):
    """Input n x in_channels x H x W, output n x num_classes logits."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(in_channels, 32, 3), nn.ReLU6())
        self.blocks = nn.Sequential()
        channels = 32
        for expansion, width, count, stride in STAGES:
            for block in range(count):
                first = stride if block == 0 else 1
                self.blocks.append(InvertedResidual(channels, width, expansion, first))
                channels = width
        self.head = nn.Sequential(*conv_norm(channels, 1280), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(1280, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.flatten(self.pool(x)))


def mobilenetv2(num_classes: int, in_channels: int = 3) -> MobileNetV2:
    return MobileNetV2(num_classes, in_channels)
