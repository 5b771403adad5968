"""Compress a network of your own on data of your own, from Python.

    python examples/own_network.py

Trains a small network on scikit-learn's digits, lets esnac search its students, uses the best.
About a minute on two cores.
"""

from __future__ import annotations

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn

import esnac
from esnac.data import from_tensors


class Net(nn.Module):
    """Any module that torch.fx can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Any training will do; esnac takes the network as it is."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 1500, **settings: object) -> esnac.SearchResult:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    data = from_tensors((images[:1400], labels[:1400]), (images[1400:], labels[1400:]))
    network = Net()
    # from_tensors normalises by the mean and spread of the training images, so train on the same.
    mean, std = data.mean[0], data.std[0]
    train(network, (images[:1400] - mean) / std, labels[:1400], steps)

    result = esnac.run_search(network.eval(), data, settings, runs=tempfile.mkdtemp())
    teacher, best = result.summary.teacher, result.summary.best_finalist()
    assert best is not None
    print(f"teacher: {teacher.params:,} parameters, test accuracy {100 * teacher.accuracy:.2f} %")
    print(f"student: {best.params:,} parameters, test accuracy {100 * best.accuracy:.2f} %")
    print(f"its files: {best.path}")
    logits = result.best_student()((images[1400:] - mean) / std)
    print(
        f"its first answers: {logits.argmax(1)[:10].tolist()}, right: {labels[1400:1410].tolist()}"
    )
    return result


if __name__ == "__main__":
    main()
