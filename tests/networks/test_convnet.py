from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.networks.convnet import ConvNet, convnet4_3, convnet8, convnet11


@pytest.mark.parametrize(
    ("build", "after"),
    [(convnet8, [2, 4, 8]), (convnet11, [3, 6, 11]), (convnet4_3, [2, 4])],
)
def test_pools_come_after_these_convolutions(build, after: list[int]) -> None:
    seen, found = 0, []
    for module in build(10).features:
        seen += isinstance(module, nn.Conv2d)
        found += [seen] if isinstance(module, nn.MaxPool2d) else []
    assert found == after


def test_the_pool_before_the_linear_layers_changes_nothing_at_32x32() -> None:
    torch.manual_seed(0)
    network = convnet4_3(10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
        network.pool = nn.Identity()
        assert torch.equal(network(images), logits)


def test_without_pools() -> None:
    network = ConvNet(((4, 5),), 3, (), 2, 1)
    assert network(torch.randn(3, 1, 32, 32)).shape == (3, 2)
    assert network.classifier[0].in_features == 5 * 32 * 32
