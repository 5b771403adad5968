"""Plain convolutional networks for 32x32 images (Polino et al. 2018, arXiv 1802.05668).

`convnet8` is that paper's teacher on CIFAR-10, `convnet4_1` to `_3` its three students and
`convnet11` its deeper student. None has dropout, as the paper's students have none when they learn
from the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from esnac.networks.initialisation import initialise


class ConvNet(nn.Module):
    """Convolutions with norm and ReLU, max pools between them, and a few linear layers.

    `stages`: the widths of the convolutions up to each 2x2 max pool, and at last of those after
    all pools; empty if there are none. `hidden`: the widths of the linear layers before the
    classifier, each with norm and ReLU. Input n x in_channels x H x W, output n x num_classes
    logits.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        kernel: int,
        hidden: Sequence[int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels, side = in_channels, 32
        for index, stage in enumerate(stages):
            if index > 0:
                self.features.append(nn.MaxPool2d(2, ceil_mode=True))
                side //= 2
            for width in stage:
                self.features.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2))
                self.features.extend([nn.BatchNorm2d(width), nn.ReLU()])
                channels = width
        # Changes nothing at 32x32; other images come to the size that the linear layer takes.
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential()
        channels *= side**2
        for width in hidden:
            self.classifier.extend([nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU()])
            channels = width
        self.classifier.append(nn.Linear(channels, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(x))))


def convnet8(num_classes: int, in_channels: int = 3) -> ConvNet:
    stages = ((76, 76), (126, 126), (148,) * 4, ())
    return ConvNet(stages, 3, (1200, 1200), num_classes, in_channels)


def convnet11(num_classes: int, in_channels: int = 3) -> ConvNet:
    stages = ((76,) * 3, (126,) * 3, (148,) * 5, ())
    return ConvNet(stages, 3, (1000,) * 3, num_classes, in_channels)


def convnet4_1(num_classes: int, in_channels: int = 3) -> ConvNet:
    return ConvNet(((75, 50), (50, 25), ()), 5, (500,), num_classes, in_channels)


def convnet4_2(num_classes: int, in_channels: int = 3) -> ConvNet:
    return ConvNet(((50, 25), (25, 10), ()), 5, (400,), num_classes, in_channels)


def convnet4_3(num_classes: int, in_channels: int = 3) -> ConvNet:
    return ConvNet(((25, 10), (10, 5), ()), 5, (300,), num_classes, in_channels)
