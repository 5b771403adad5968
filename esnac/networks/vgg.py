"""VGG for small images (Simonyan and Zisserman 2014, arXiv 1409.1556), with batch norm.

Configurations D and E of table 1 with batch norm after every convolution and one linear layer in
place of three, as is usual on CIFAR.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from esnac.networks.initialisation import initialise


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each followed by a 2x2 max pool; one linear classifier.

    `depths`: convolutions per stage. Input n x in_channels x H x W with 1 <= H, W <= 32, output
    n x num_classes logits. Five halvings bring 32x32 to 1x1, and no global pool follows.
    """

    def __init__(self, depths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = in_channels
        for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                self.features.append(nn.Conv2d(channels, width, 3, padding=1))
                self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
            # Rounding up keeps a 1x1 image 1x1, so images below 32x32 take the same path
            # (8 -> 4 -> 2 -> 1 -> 1 -> 1); at 32x32 no size is odd and it changes nothing.
            self.features.append(nn.MaxPool2d(2, ceil_mode=True))
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.features(x)))


def vgg16(num_classes: int, in_channels: int = 3) -> VGG:
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int, in_channels: int = 3) -> VGG:
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)
