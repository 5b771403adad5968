import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from esnac import networks
from esnac.graphs.groups import channel_groups, shuffled
from esnac.graphs.trace import trace


def sizes_of(module, input_size):
    """Sizes of the groups that can shrink, sorted."""
    groups = channel_groups(trace(module, input_size))
    return sorted(groups.sizes[~groups.frozen].tolist())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 6, 1)
        self.b = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        return self.head(x.mean((2, 3)))


class ConcatAdd(nn.Module):
    """What is added to a concat is tied to its parts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(3, 10, 1)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1) + self.c(x)
        return self.head(x.mean((2, 3)))


class Split(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.tied = tied
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(4, 2)
        self.other = nn.Linear(4, 2)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, dim=1)
        if self.tied:  # a gated linear unit
            return self.head((a * torch.sigmoid(b)).mean((2, 3)))
        return self.head(a.mean((2, 3))) + self.other(b.mean((2, 3)))


class Excite(nn.Module):
    """Squeeze-excite and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 2)

    def forward(self, x):
        x = self.depthwise(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * gate).flatten(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.shuffle = nn.ChannelShuffle(3)
        self.grouped = nn.Conv2d(12, 8, 3, groups=4)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.grouped(self.shuffle(self.stem(x))).mean((2, 3)))


def test_residual_ties_the_ends_of_the_block():
    assert sizes_of(Residual(), (3, 4, 4)) == [6, 8]


def test_concat_added_to_a_layer_is_tied_part_by_part():
    groups = channel_groups(trace(ConcatAdd(), (3, 4, 4)))
    assert sorted(groups.sizes[~groups.frozen].tolist()) == [4, 6]
    head = groups.reads_share[-1]
    assert head @ groups.sizes == 10


def test_parts_of_a_split_are_tied_only_when_they_meet():
    assert sizes_of(Split(tied=True), (3, 2, 2)) == [4]
    assert sizes_of(Split(tied=False), (3, 2, 2)) == [4, 4]


def test_a_gated_unit_makes_two_channels_per_unit():
    graph = trace(Split(tied=True), (3, 2, 2))
    groups = channel_groups(graph)
    stem = next(i for i, layer in enumerate(graph.layers) if layer.kind == "conv")
    assert groups.makes_share[stem].max() == 2


def test_squeeze_excite_and_depthwise_share_the_trunk():
    groups = channel_groups(trace(Excite(), (3, 4, 4)))
    assert sorted(groups.sizes[~groups.frozen].tolist()) == [2, 8]
    assert groups.reads_share[-1].max() == 16  # flattened: 4 x 4 positions per channel


def test_grouped_layers_give_divisors():
    groups = channel_groups(trace(Grouped(), (3, 4, 4)))
    free = ~groups.frozen
    assert dict(zip(groups.sizes[free].tolist(), groups.divisors[free].tolist(), strict=True)) == {
        12: 12,
        8: 4,
    }


def test_input_and_output_are_frozen():
    graph = trace(Residual(), (3, 4, 4))
    groups = channel_groups(graph)
    assert groups.frozen[groups.makes_share[-1] > 0].all()
    assert groups.frozen[groups.reads_share[0] > 0].all()


def test_shuffle_order_is_torch_s():
    x = torch.arange(12.0).reshape(1, 12, 1, 1)
    expected = nn.ChannelShuffle(3)(x).flatten().int().tolist()
    assert shuffled(np.arange(12), 3).tolist() == expected


def test_resnet18_has_four_trunks_and_eight_inner_groups():
    groups = channel_groups(trace(networks.build("resnet18", 100), (3, 32, 32)))
    free = groups.sizes[~groups.frozen]
    assert sorted(free.tolist()) == sorted([64, 128, 256, 512] * 3)
