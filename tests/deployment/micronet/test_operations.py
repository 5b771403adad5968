"""Each kind of layer by hand, at widths that tell the parts apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from esnac.deployment.micronet.operations import FREE, Call, Work, addition, work
from esnac.errors import EsnacError
from esnac.graphs import ops
from esnac.graphs.arch_graph import INPUT, Layer
from esnac.graphs.trace import trace


def call(module: nn.Module, shape: tuple[int, ...], **widths: Any) -> Call:
    """The first layer of a network; 32 bits throughout."""
    layer = trace(nn.Sequential(module), shape).layers[0]
    given = {"accumulation": "fp32", "reads": 32, "signed": True, "width": 32, **widths}
    return Call(layer, **given)


CONV = nn.Conv2d(3, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("widths", "multiplies", "additions"),
    [
        # 64 positions of 4 filters; 26 additions of 27 products, one of the bias
        ({"nonzeros": 108, "bias": 32}, 6912, 6656 + 256),
        ({"nonzeros": 108}, 6912, 6656),
        ({"nonzeros": 36, "bias": 32}, 36 * 64, (36 - 4) * 64 + 256),
        ({"nonzeros": 108, "width": 8}, 6912 / 4, 6656),
        # 38 weights: two filters of 10 and two of 9
        ({"nonzeros": 38}, 38 * 64, (9 + 9 + 8 + 8) * 64),
        # Fewer weights than filters: no additions, never less than none
        ({"nonzeros": 3}, 3 * 64, 0),
        ({"nonzeros": 0, "bias": 32}, 0, 256),
    ],
)
def test_convolution(widths: dict[str, Any], multiplies: float, additions: float) -> None:
    assert work(call(CONV, (3, 8, 8), **widths)) == Work(multiplies, additions)


def test_convolution_with_narrow_sums() -> None:
    """4-bit weights by 4-bit numbers: products of 8 bits, of 7 where both may be negative."""
    narrow = {"nonzeros": 36, "weight": 4, "reads": 4, "width": 4, "signed": False}
    for accumulation, bits in (("tree", 71), ("fixed", 8 * 12), ("fp32", 8 * 32)):
        done = work(call(CONV, (3, 8, 8), accumulation=accumulation, **narrow))
        assert done == Work(36 * 64 / 8, 256 * bits / 32)
    narrow |= {"accumulation": "tree", "signed": True}
    assert work(call(CONV, (3, 8, 8), **narrow)).additions == 256 * (71 - 8) / 32
    # A bias of 4 bits is added to a sum of 12 bits (11 here), one of 32 bits at 32.
    for bias, width in ((4, 11), (32, 32)):
        done = work(call(CONV, (3, 8, 8), bias=bias, **narrow))
        assert done.additions == 256 * (71 - 8 + width) / 32


def test_groups_are_divided_out_once() -> None:
    """A depthwise 3x3 convolution has 9 weights per channel: 9 products per output."""
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    done = work(call(depthwise, (8, 5, 5), nonzeros=depthwise.weight.numel()))
    assert done == Work(9 * 8 * 25, 8 * 8 * 25)


@pytest.mark.parametrize(
    ("module", "shape", "multiplies", "additions"),
    [
        (nn.Linear(4, 10), (4,), 40, 30),
        (nn.ReLU(), (4, 8, 8), 256, 0),
        (nn.SiLU(), (4, 8, 8), 768, 256),
        (nn.Sigmoid(), (5,), 10, 5),
        (nn.AdaptiveAvgPool2d(1), (4, 8, 8), 4, 63 * 4),
        # Windows of 5 rows in 3 overlap: 2, 3 and 2 rows, so 49 numbers in 9 windows
        (nn.AdaptiveAvgPool2d(3), (1, 5, 5), 9, 49 - 9),
        (nn.AdaptiveMaxPool2d(3), (1, 5, 5), 49 - 9, 0),
        (nn.AvgPool2d(2), (3, 4, 4), 12, 36),
        (nn.MaxPool2d(3, 2, 1), (3, 4, 4), 8 * 12, 0),
        (nn.BatchNorm2d(4), (4, 3, 3), 36, 36),
        # Two groups: 2 + 1 per number, 3 per group, 1 per channel
        (nn.GroupNorm(2, 4), (4, 3, 3), 72 + 6 + 4, 144),
        (nn.GroupNorm(2, 4, affine=False), (4, 3, 3), 72 + 6, 108),
        (nn.ChannelShuffle(2), (4, 3, 3), 36, 0),
        (nn.Flatten(), (4, 3, 3), 0, 0),
        (nn.Dropout(), (4, 3, 3), 0, 0),
    ],
)
def test_other_layers(
    module: nn.Module, shape: tuple[int, ...], multiplies: float, additions: float
) -> None:
    nonzeros = sum(p.numel() for p in module.parameters() if p.dim() > 1)
    assert work(call(module, shape, nonzeros=nonzeros)) == Work(multiplies, additions)


def test_squeeze_excite_and_residual_sums() -> None:
    shape = (4, 6, 6)
    gate = Layer("gate", "multiply", (0, 1), shape, shape)
    assert work(Call(gate, "fp32", 32, True, 8)) == Work(144 / 4, 0)
    join = Layer("join", "relu", (0, 1, 2), shape, shape)
    assert addition(join) == Work(0, 2 * 144)


def test_pool_of_narrow_numbers() -> None:
    narrow = {"reads": 8, "width": 8, "accumulation": "tree"}
    assert work(call(nn.AdaptiveAvgPool2d(1), (2, 3, 3), **narrow)) == Work(2 / 4, 2 * 71 / 32)


def test_every_kind_of_layer_has_a_rule() -> None:
    attributes = {"kernel": (2, 2), "groups": 1, "affine": True}
    for kind in ops.OPERATIONS:
        layer = Layer("a", kind, (INPUT, INPUT), (2, 3, 3), (2, 3, 3), attributes)
        done = work(Call(layer, "fp32", 32, True, 32, nonzeros=4, bias=32))
        assert (done == Work()) == (kind in FREE)


def test_a_kind_without_a_rule() -> None:
    unknown = Layer("odd", "fft", (INPUT,), (2, 3, 3), (2, 3, 3))
    with pytest.raises(EsnacError, match="Layer 'odd': the MicroNet score has no rule for 'fft'"):
        work(Call(unknown, "fp32", 32, True, 32))


def test_windows_are_torch_s() -> None:
    """A window's numbers are those that get a gradient."""
    x = torch.zeros(1, 1, 7, 5, requires_grad=True)
    pool = nn.AdaptiveAvgPool2d((3, 2))
    read = 0
    for cell in pool(x).flatten():
        (gradient,) = torch.autograd.grad(cell, x, retain_graph=True)
        read += int((gradient != 0).sum())
    assert work(call(pool, (1, 7, 5))) == Work(6, read - 6)
