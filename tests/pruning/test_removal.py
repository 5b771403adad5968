from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esnac import networks
from esnac.graphs.cost import cost
from esnac.graphs.masks import attach_masks, effective_weights
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.pruning.importance import at_random, by_scales, by_weights
from esnac.pruning.removal import removable, remove
from esnac.pruning.slimming import choose
from tests.pruning.conftest import plain


class PreBlock(nn.Module):
    """Norms before the convolutions; a projection reads the trunk itself."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 2 * width
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, after, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after
            else nn.Identity()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.bn1(x)))
        y = self.conv2(torch.relu(self.bn2(y)))
        return self.conv3(torch.relu(self.bn3(y))) + self.shortcut(x)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            PreBlock(8, 8, 1), PreBlock(16, 8, 1), PreBlock(16, 8, 2), PreBlock(16, 8, 1)
        )
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class NoNorms(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.activation, self.c = activation, nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.activation(self.b(self.activation(self.a(x)))).flatten(1))


class Grouped(nn.Sequential):
    """A convolution in four groups, as in ResNeXt: each keeps equally many channels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, groups=4, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, 10),
        )  # fmt: skip


def student(module: nn.Module, size: tuple[int, int, int] = (3, 32, 32)) -> StudentNetwork:
    """Its weights, scales, shifts and statistics at random, so that nothing is zero by chance."""
    graph = trace(module, size)
    network = StudentNetwork(graph, teacher_weights(graph, module.state_dict()))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1:
            low = 0.2 if name.endswith("var") else -0.8
            tensor.uniform_(low, 1, generator=generator)
    return network.eval()


NETWORKS = {
    "plain": (plain, (1, 16, 16)),
    "resnet20": (lambda: networks.build("resnet20", 10), (3, 32, 32)),
    "vgg16": (lambda: networks.build("vgg16", 10), (3, 32, 32)),
    "mobilenetv2": (lambda: networks.build("mobilenetv2", 10), (3, 32, 32)),
    "shufflenet": (lambda: networks.build("shufflenet", 10), (3, 32, 32)),
    "preact_resnet38": (lambda: networks.build("preact_resnet38", 10), (3, 32, 32)),
    "efficientnet_b0": (lambda: networks.build("efficientnet_b0", 10), (3, 32, 32)),
    "densenet40": (lambda: networks.build("densenet40", 10), (3, 32, 32)),
    "grouped": (lambda: Grouped(), (3, 8, 8)),
    "pre-activation": (PreActivation, (3, 32, 32)),
    "no norms": (lambda: NoNorms(nn.ReLU()), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("kind", "sparsity"), [("scales", 0.5), ("scales", 0.7), ("l1", 0.5), ("random", 0.7)]
)
def test_the_smaller_network_computes_what_the_silent_one_does(
    name: str, kind: str, sparsity: float
) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network = student(make(), size)
    if name == "no norms" and kind == "scales":
        pytest.skip("no scales")
    space = Space(network.graph, tie="dependency")
    free = removable(space, by_scales=kind == "scales")
    scores = {
        "scales": lambda: by_scales(network, space.groups),
        "l1": lambda: by_weights(network, space.groups, 1),
        "random": lambda: at_random(space.groups, torch.Generator().manual_seed(0)),
    }[kind]()
    chosen = choose(space, scores, sparsity, free)
    masked = copy.deepcopy(network)
    if kind == "scales":
        silence_norms(masked, space, chosen)
    else:
        silence(masked, space, chosen)
    small = remove(network, space, chosen)
    x = torch.randn(4, *size)
    with torch.no_grad():
        expected = masked(x)
        assert (small(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
        assert not torch.allclose(network(x), expected, atol=1e-3)
    assert cost(small.graph).params == sum(p.numel() for p in small.parameters())
    share = 1.0 if name == "shufflenet" else 0.8  # whose shuffles keep most channels
    assert cost(small.graph).params < share * cost(network.graph).params


@torch.no_grad()
def silence(network: StudentNetwork, space: Space, chosen: list[np.ndarray]) -> None:
    """Zeroes, in place, what makes and norms the units that are not `chosen`."""
    groups = space.groups
    kept = [np.isin(np.arange(size), r) for size, r in zip(groups.sizes, chosen, strict=True)]
    places = zip(groups.group_of_unit, groups.rank_of_unit, strict=True)
    keep = np.array([kept[group][rank] for group, rank in places])
    for number, layer in enumerate(network.graph.layers):
        if layer.kind not in ("conv", "linear", "batch_norm"):
            continue
        gone = torch.from_numpy(~keep[groups.makes[number]])
        for parameter in network.get_submodule(layer.name).parameters():
            parameter[gone.to(parameter.device)] = 0


@torch.no_grad()
def silence_norms(network: StudentNetwork, space: Space, chosen: list[np.ndarray]) -> None:
    """Zero scales and shifts alone, as in a slimmed network before it is rebuilt."""
    groups = space.groups
    for number, layer in enumerate(network.graph.layers):
        if layer.kind == "batch_norm":
            module = network.get_submodule(layer.name)
            for channel, unit in enumerate(groups.makes[number]):
                if groups.rank_of_unit[unit] not in chosen[groups.group_of_unit[unit]]:
                    for parameter in module.parameters():
                        parameter[channel] = 0


def test_pre_activation_trunks_keep_their_width_where_a_projection_reads_them() -> None:
    network = student(PreActivation())
    space = Space(network.graph, tie="dependency")
    free = removable(space, by_scales=True)
    widths = {
        layer.source: free[space.groups.group_of_unit[space.groups.makes[number]]].all()
        for number, layer in enumerate(network.graph.layers)
        if layer.kind == "conv"
    }
    assert not widths["stem"], "read by the first projection"
    assert not widths["blocks.1.conv3"], "read by the second projection"
    assert widths["blocks.3.conv3"], "all that read the last trunk are norms"
    assert widths["blocks.0.conv1"]
    assert widths["blocks.0.conv2"]


def test_what_is_not_silent_stays() -> None:
    for activation, expected in ((nn.ReLU(), 2), (nn.Sigmoid(), 0), (nn.Softplus(), 0)):
        network = student(NoNorms(activation), (3, 8, 8))
        space = Space(network.graph, tie="dependency")
        assert removable(space, by_scales=False).sum() == expected
        assert not removable(space, by_scales=True).any()


def test_a_group_norm_keeps_its_channels() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 16, 10),
    )  # fmt: skip
    space = Space(student(module, (3, 8, 8)).graph, tie="dependency")
    assert space.groups.sizes[removable(space, by_scales=False)].tolist() == [4]


def test_a_channel_shuffle_keeps_its_channels() -> None:
    """The branches of ShuffleNet between two shuffles could not be told apart."""
    network = student(networks.build("shufflenet", 10))
    space = Space(network.graph, tie="dependency")
    free = removable(space, by_scales=True)
    for number, layer in enumerate(network.graph.layers):
        if layer.kind == "channel_shuffle":
            assert not free[space.groups.group_of_unit[space.groups.reads[number]]].any()


def test_masks_of_weights_stay_on_what_is_left() -> None:
    network = student(plain(), (1, 16, 16))
    name = next(n for n, w in effective_weights(network).items() if w.shape == (32, 32, 3, 3))
    attach_masks(network, {name: torch.rand(32, 32, 3, 3) > 0.5})
    space = Space(network.graph, tie="dependency")
    chosen = choose(space, by_weights(network, space.groups, 1), 0.5, removable(space, False))
    small = remove(network, space, chosen)
    before, after = effective_weights(network)[name], effective_weights(small)[name]
    assert 0 < (after == 0).sum() < (before == 0).sum()
    small.train()(torch.randn(2, 1, 16, 16)).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1, weight_decay=0.1).step()
    assert torch.equal(effective_weights(small)[name] == 0, after == 0)
