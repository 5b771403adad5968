from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.vgg import vgg16, vgg19


def pool_sides(side: int) -> list[int]:
    network, sides = vgg16(10, 1).eval(), []
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(lambda *call: sides.append(call[2].shape[-1]))
    with torch.no_grad():
        network(torch.zeros(1, 1, side, side))
    return sides


@pytest.mark.parametrize(
    ("side", "expected"),
    [(32, [16, 8, 4, 2, 1]), (28, [14, 7, 4, 2, 1]), (8, [4, 2, 1, 1, 1]), (1, [1] * 5)],
)
def test_sides_after_the_pools(side: int, expected: list[int]) -> None:
    assert pool_sides(side) == expected


def test_rounding_up_changes_nothing_at_32x32() -> None:
    torch.manual_seed(0)
    network = vgg19(10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
        for module in network.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = False
        assert torch.equal(network(images), logits)


@pytest.mark.parametrize(("build", "convolutions"), [(vgg16, 13), (vgg19, 16)])
def test_layers(build, convolutions: int) -> None:
    modules = list(build(10).modules())
    found = [m for m in modules if isinstance(m, nn.Conv2d)]
    assert len(found) == convolutions
    assert all(m.bias is not None for m in found)
    assert sum(isinstance(m, nn.Linear) for m in modules) == 1
