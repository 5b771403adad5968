from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esnac.errors import SettingsError
from esnac.graphs.groups import channel_groups
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.pruning.importance import at_random, by_scales, by_taylor, by_weights


class Block(nn.Module):
    """A trunk of two norms: what the first makes and what the branch adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.conv, self.last = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc(torch.relu(x + self.last(self.conv(x))).mean((2, 3)))


def student(module: nn.Module) -> StudentNetwork:
    graph = trace(module, (1, 4, 4))
    return StudentNetwork(graph, teacher_weights(graph, module.state_dict()))


def block() -> Block:
    module = Block()
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([0.1, -0.9, 0.2]))
        module.last.weight.copy_(torch.tensor([0.3, 0.0, -0.1]))
        module.stem.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1))
        module.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
    return module


def of_trunk(scores: np.ndarray, network: StudentNetwork) -> list[float]:
    stem = next(i for i, layer in enumerate(network.graph.layers) if layer.kind == "conv")
    found: list[float] = scores[channel_groups(network.graph).makes[stem]].tolist()
    return found


def test_all_norms_of_a_trunk_must_agree() -> None:
    network = student(block())
    scores = by_scales(network, channel_groups(network.graph))
    assert of_trunk(scores, network) == pytest.approx([0.3, 0.9, 0.2])
    assert np.isinf(scores).sum() == 3, "the image and the two classes pass no norm"


def test_norms_of_weights_over_their_mean_in_the_group() -> None:
    """Rows (1, 1), (2, 1), (3, 1) of the two makers of the trunk."""
    network = student(block())
    groups = channel_groups(network.graph)
    assert of_trunk(by_weights(network, groups, 1), network) == pytest.approx([2 / 3, 1, 4 / 3])
    l2 = np.sqrt([2, 5, 10])
    assert of_trunk(by_weights(network, groups, 2), network) == pytest.approx(l2 / l2.mean())


def test_taylor_is_the_change_of_the_loss_without_the_channel() -> None:
    """Of a network that is linear in its channels, to first order means exactly."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 1),
    )  # fmt: skip
    nn.init.uniform_(module[1].weight)
    nn.init.uniform_(module[1].bias)
    network = student(module).eval()
    groups = channel_groups(network.graph)
    x = torch.randn(6, 1, 4, 4)

    def loss(y: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return y.mean()

    scores = by_taylor(network, groups, [(x, torch.zeros(6))], loss)
    whole = network(x).mean()
    norm = network.get_submodule(network.graph.layers[1].name)
    for channel, score in enumerate(of_trunk(scores, network)):
        kept = [p.detach().clone() for p in norm.parameters()]
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter[channel] = 0
            change = (network(x).mean() - whole).item()
            for parameter, old in zip(norm.parameters(), kept, strict=True):
                parameter.copy_(old)
        assert score == pytest.approx(change**2, rel=1e-3)


def test_taylor_leaves_the_network_as_it_was() -> None:
    network = student(block())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [(torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))] * 2
    by_taylor(network, channel_groups(network.graph), batches, F.cross_entropy)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_at_random_follows_its_generator() -> None:
    groups = channel_groups(student(block()).graph)
    one, same, other = (
        at_random(groups, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_network_without_norms_and_no_images() -> None:
    network = student(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)))
    groups = channel_groups(network.graph)
    with pytest.raises(SettingsError, match="no batch norms with scales"):
        by_scales(network, groups)
    with pytest.raises(SettingsError, match="at least one batch"):
        by_taylor(network, groups, [], F.cross_entropy)
