"""ResNet for small images (He et al. 2015, arXiv 1512.03385).

ResNet-18/34 are the ImageNet networks with a 3x3 stem of stride 1 and no max pool; ResNet-20 to
-110 are the CIFAR networks of section 4.2, here with projection shortcuts (option B) where the
paper's have zero padding (option A).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from esnac.networks.initialisation import initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, relu(F(x) + shortcut(x)); a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of basic blocks (each but the first halves the image), global pool, classifier.

    `blocks` and `widths`: blocks and channels per stage. Input n x in_channels x H x W, output
    n x num_classes logits.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        channels = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = nn.Sequential()
            for block in range(count):
                stage.append(BasicBlock(channels, width, 2 if index > 0 and block == 0 else 1))
                channels = width
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(x)))


def resnet18(num_classes: int, in_channels: int = 3) -> ResNet:
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels)


def resnet34(num_classes: int, in_channels: int = 3) -> ResNet:
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels)


def _cifar(depth: int, num_classes: int, in_channels: int) -> ResNet:
    """6 n + 2 layers: n blocks in each of three stages of 16, 32 and 64 channels."""
    return ResNet(((depth - 2) // 6,) * 3, (16, 32, 64), num_classes, in_channels)


def resnet20(num_classes: int, in_channels: int = 3) -> ResNet:
    return _cifar(20, num_classes, in_channels)


def resnet32(num_classes: int, in_channels: int = 3) -> ResNet:
    return _cifar(32, num_classes, in_channels)


def resnet44(num_classes: int, in_channels: int = 3) -> ResNet:
    return _cifar(44, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int = 3) -> ResNet:
    return _cifar(56, num_classes, in_channels)


def resnet110(num_classes: int, in_channels: int = 3) -> ResNet:
    return _cifar(110, num_classes, in_channels)
