from __future__ import annotations

import torch
from torch import nn

from esnac.networks.shufflenet import BasicUnit, Bottleneck, DownsamplingUnit, shufflenet


def test_basic_unit_without_bottleneck_is_relu() -> None:
    unit = BasicUnit(16).eval()
    nn.init.zeros_(unit.bottleneck.bn3.weight)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(unit(x), x.relu())


def test_downsampling_unit_puts_the_shortcut_last() -> None:
    unit = DownsamplingUnit(8, 24).eval()
    nn.init.zeros_(unit.bottleneck.bn3.weight)
    nn.init.ones_(unit.conv.weight)
    x = torch.rand(2, 8, 6, 6)
    out = unit(x)
    assert out.shape == (2, 24, 3, 3)
    assert not out[:, :16].any()
    # Two groups of four channels; the window at (1, 1) covers rows and columns 1 to 3.
    means = x[:, :, 1:4, 1:4].mean((2, 3)).reshape(2, 2, 4).sum(2)
    torch.testing.assert_close(out[:, 16:, 1, 1], means.repeat_interleave(4, dim=1))


def test_no_relu_after_the_depthwise_convolution() -> None:
    bottleneck = Bottleneck(16, 16, 1).eval()
    kept = []
    bottleneck.conv3.register_forward_hook(lambda *call: kept.append(call[1][0]))
    bottleneck(torch.randn(4, 16, 4, 4))
    assert (kept[0] < 0).any()


def test_groups_and_middle_channels() -> None:
    """A stage's first unit has (out - in) / 4 in the middle; only the stem is read ungrouped."""
    stages = shufflenet(10).stages
    units = [[unit.bottleneck for unit in stage] for stage in stages]
    assert [len(stage) for stage in units] == [4, 8, 4]
    assert [[b.conv1.out_channels for b in stage[:2]] for stage in units] == [
        [44, 50],
        [50, 100],
        [100, 200],
    ]
    groups = [b.conv1.groups for stage in units for b in stage]
    assert groups == [1] + [2] * 15
    assert {b.conv3.groups for stage in units for b in stage} == {2}


def test_shuffle_lets_each_output_group_see_both_input_groups() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(64, 64, 1).eval()
    x = torch.randn(4, 64, 3, 3, requires_grad=True)

    def seen() -> list[bool]:
        """Which half of the input the first half of the output depends on."""
        (gradient,) = torch.autograd.grad(bottleneck(x)[:, :32].sum(), x)
        return [bool(half.any()) for half in gradient.chunk(2, dim=1)]

    assert seen() == [True, True]
    bottleneck.shuffle = nn.Identity()
    assert seen() == [True, False]
