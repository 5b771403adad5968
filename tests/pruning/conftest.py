"""A small target that trains in seconds: digits of 16x16 pixels and a plain network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Digits:
    """sklearn's digits, bilinear to 16x16; 1,347 to train on and 450 to test."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
        images = F.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
        images = (images - images.mean()) / images.std()
        labels = torch.from_numpy(bunch.target).long()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        self.train = images[order[:1347]], labels[order[:1347]]
        self.test = images[order[1347:]], labels[order[1347:]]

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        network.eval()
        images, labels = self.test
        return (network(images).argmax(1) == labels).float().mean().item()

    def fit(
        self,
        network: nn.Module,
        epochs: int,
        rate: float,
        *,
        loss: Loss = lambda logits, labels, images: F.cross_entropy(logits, labels),
        penalty: Callable[[], Tensor] | None = None,
        before_epoch: Callable[[int], None] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> float:
        """Accuracy after the last epoch: SGD, cosine to zero, whole batches rolled by a pixel."""
        torch.manual_seed(0)
        images, labels = self.train
        optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-4)
        steps = math.ceil(len(labels) / 64)
        for epoch in range(epochs):
            if before_epoch is not None:
                before_epoch(epoch)
            network.train()
            for step, rows in enumerate(torch.randperm(len(labels)).split(64)):
                turn = math.pi * (epoch * steps + step) / (epochs * steps)
                optimizer.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(turn))
                shift = tuple(torch.randint(-1, 2, (2,)).tolist())
                batch = images[rows].roll(shift, (2, 3))
                value = loss(network(batch), labels[rows], batch)
                if penalty is not None:
                    value = value + penalty()
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                if after_step is not None:
                    after_step()
        return self.accuracy(network)


def plain(widths: Sequence[int] = (32, 32, 64, 64), seed: int = 0) -> nn.Sequential:
    """Convolutions with norms whose scales start at 0.5, strides 1, 2, 1, 2, and a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = 1
    for width, stride in zip(widths, (1, 2, 1, 2), strict=True):
        norm = nn.BatchNorm2d(width)
        nn.init.constant_(norm.weight, 0.5)
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), norm, nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def teacher(digits: Digits) -> nn.Module:
    network = plain((32, 64, 64, 128), seed=1)
    digits.fit(network, 10, 0.05)
    return network.requires_grad_(False)


def distil(teacher: nn.Module, temperature: float, share: float) -> Loss:
    """`share` of the softened divergence from the teacher, the rest on the labels."""

    def loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        wanted = F.log_softmax(teacher(images) / temperature, dim=1)
        found = F.log_softmax(logits / temperature, dim=1)
        soft = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return share * temperature**2 * soft + (1 - share) * F.cross_entropy(logits, labels)

    return loss


def sparsity_of(weight: Tensor) -> float:
    """The share of exact zeros."""
    return (weight == 0).double().mean().item()
