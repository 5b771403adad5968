"""Small networks of each wiring, and one that knows the digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace


@pytest.fixture(scope="session")
def onnx_extra() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra onnx")


def student_of(module: nn.Module, shape: tuple[int, int, int]) -> StudentNetwork:
    graph = trace(module, shape)
    return StudentNetwork(graph, teacher_weights(graph, module.state_dict())).eval()


def stir(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms as after a training: statistics and affine parts that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.2, 0.2),
                (norm.running_mean, -0.2, 0.2),
                (norm.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return module.eval()


class PreActivation(nn.Module):
    """A residual branch behind a norm and an activation, with a final norm before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(8, 6, 1, bias=False)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.relu(self.norm2(self.conv1(self.relu(self.norm1(x))))))
        x = self.fc(self.flatten(self.pool(self.relu(self.last(x)))))
        return x


@pytest.fixture
def pre_activation() -> StudentNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return student_of(stir(PreActivation()), (1, 8, 8))


@pytest.fixture(scope="session")
def resnet20() -> StudentNetwork:
    from esnac.networks import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return student_of(stir(build("resnet20", 10)), (3, 32, 32))


@dataclass(frozen=True)
class Digits:
    """Inputs of 16x16 pixels, normalised: 1,347 to train on, 450 to test."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        return (logits.argmax(dim=1) == self.test_labels).double().mean().item()


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=16, mode="bilinear", align_corners=False)
    images = (images - images.mean()) / images.std()
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return Digits(images[:1347], labels[:1347], images[1347:], labels[1347:])


def train(module: nn.Module, digits: Digits, epochs: int) -> nn.Module:
    """SGD with momentum 0.9, rate 0.05 by a cosine to 0, batches of 64 that roll by a pixel."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 22)
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(1347, generator=generator).split(64):
            dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
            inputs = digits.train[batch].roll((dy, dx), dims=(2, 3))
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), digits.train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def plain() -> nn.Module:
    """65,834 parameters."""
    layers: list[nn.Module] = []
    reads = 1
    for width, stride in ((32, 1), (32, 2), (64, 1), (64, 2)):
        conv = nn.Conv2d(reads, width, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        nn.init.constant_(layers[-2].weight, 0.5)
        reads = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="session")
def trained(digits: Digits) -> StudentNetwork:
    """The plain network after 8 epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return student_of(train(plain(), digits, 8), (1, 16, 16))


@pytest.fixture
def small_shuffle() -> Callable[[], StudentNetwork]:
    """A network with slices, a concatenation and a channel shuffle."""
    from esnac.graphs.ops import ChannelShuffle, Concat, Slice

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.left, self.right = Slice(0, 4), Slice(4, 8)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.concat, self.shuffle = Concat(), ChannelShuffle(2)
            self.norm, self.flatten = nn.BatchNorm2d(8), nn.Flatten()
            self.fc = nn.Linear(8 * 64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.concat(self.left(x), self.conv(self.right(x)))
            return self.fc(self.flatten(self.norm(self.shuffle(x))))

    return lambda: student_of(stir(Split()), (1, 8, 8))
