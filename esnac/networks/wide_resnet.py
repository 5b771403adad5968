"""WideResNet (Zagoruyko and Komodakis 2016, arXiv 1605.07146): pre-activation, without dropout."""

from __future__ import annotations

from torch import Tensor, nn

from esnac.networks.initialisation import initialise


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice; the sum with the input is not activated.

    Where the shape changes, the 1x1 shortcut reads the activated input and has no norm of its own.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-factor: three stages of (depth - 4) / 6 blocks, 16, 32, 64 times `factor` channels.

    Input n x in_channels x H x W, output n x num_classes logits.
    """

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        channels = 16
        for width, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
            stage = nn.Sequential()
            for block in range((depth - 4) // 6):
                stage.append(WideBlock(channels, width, stride if block == 0 else 1))
                channels = width
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


def wrn16_4(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(16, 4, num_classes, in_channels)


def wrn28_10(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(28, 10, num_classes, in_channels)


def wrn40_2(num_classes: int, in_channels: int = 3) -> WideResNet:
    return WideResNet(40, 2, num_classes, in_channels)
