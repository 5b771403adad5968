"""Training with quantisers on the digits: every way of quantising learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from esnac.graphs.masks import attach_masks
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.quantization import store
from esnac.quantization.attach import attach, masters, verify_fired
from esnac.quantization.description import activation_settings, weight_settings
from esnac.quantization.policy import Policy, make_plan
from esnac.quantization.recalibration import recalibrate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on (1,200) and to test on (597)."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(data.target)[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def network() -> StudentNetwork:
    """2,626 parameters: two convolutions and two linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
    )
    return StudentNetwork(trace(net, (1, 8, 8)))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """SGD, nesterov 0.9, weight decay 2.2e-4, cosine, batches of 64 in an order seeded 0."""
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=2.2e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(64)[: len(images) // 64]:
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, ...]) -> dict[str, Tensor]:
    model = network()
    train(model, *digits[:2], epochs=20, rate=0.05)
    assert accuracy(model, *digits[2:]) > 0.975
    return model.state_dict()


@pytest.mark.parametrize(
    ("weights", "activations", "policy", "least"),
    [
        ("lsq", "lsq", Policy(4, 4, ends=4), 0.95),  # 0.975
        ("lsq", "lsq", Policy(2, 4, ends=2), 0.91),  # 0.941
        ("dorefa", "dorefa", Policy(4, 4), 0.93),  # 0.978; inputs below 0 would be lost
        ("dorefa", "pact", Policy(4, 4, ends=4), 0.96),  # 0.980
        ("minmax", "minmax", Policy(4, 4, ends=4), 0.96),  # 0.988
        ("uniform", "lsq", Policy(2, 4, ends=2), 0.91),  # 0.940
    ],
)
def test_a_pruned_network_in_few_bits(
    weights: str,
    activations: str,
    policy: Policy,
    least: float,
    digits: tuple[Tensor, ...],
    trained: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    model = network()
    model.load_state_dict(trained)
    ways = weight_settings(weights), activation_settings(activations)
    attach(model, make_plan(model, policy, *ways))
    name = next(name for name in masters(model) if masters(model)[name].shape == (16, 128))
    keep = masters(model)[name].abs() > masters(model)[name].abs().median()
    attach_masks(model, {name: keep})
    train(model, *digits[:2], epochs=6, rate=0.02)
    recalibrate(model, digits[0].split(100))
    verify_fired(model, digits[0][:4])
    found = accuracy(model, *digits[2:])
    assert found >= least
    weight = model.get_submodule(name.partition(".")[0]).weight
    assert not weight[~keep].any()
    store.save(tmp_path, model)
    assert accuracy(store.load(tmp_path), *digits[2:]) == found  # exactly
