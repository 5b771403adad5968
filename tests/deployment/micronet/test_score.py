"""Scores worked by hand, known networks, and what the score refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esnac import networks
from esnac.data.vision import torchvision
from esnac.deployment.micronet import Description, Score, score, task
from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.trace import trace

CIFAR, IMAGENET = task("cifar100"), task("imagenet")


def names(graph: ArchGraph) -> dict[str, str]:
    """Layers by kind, of a graph that has one of each."""
    return {layer.kind: layer.name for layer in graph.layers}


def sparse(graph: ArchGraph) -> dict[str, int]:
    """9 of 27 weights left in each of the four filters."""
    return {f"{names(graph)['conv']}.weight": 36}


# Mode, storage, multiplies, additions, operations and the score on CIFAR-100 (A: also ImageNet's).
EXAMPLES = [
    ("A", 162, 7212, 7204, 14416, 5.812617e-06),
    ("B", 81, 3606, 7204, 10810, 3.249683e-06),
    ("D", 93.375, 2604, 2596, 5200, 3.053929e-06),
    ("F", 14.625, 325.5, 2596, 2921.5, 6.79188e-07),
]


def in_mode(mode: str, graph: ArchGraph, **others: Any) -> Score:
    zeros = sparse(graph) if mode in "DF" else {}
    description = Description(nonzeros=zeros, default=4 if mode == "F" else 32)
    return score(graph, CIFAR, description, freebie=mode == "B", **others)


@pytest.mark.parametrize(
    ("mode", "storage", "multiplies", "additions", "operations", "value"), EXAMPLES
)
def test_the_worked_example(
    example: ArchGraph,
    mode: str,
    storage: float,
    multiplies: float,
    additions: float,
    operations: float,
    value: float,
) -> None:
    found = in_mode(mode, example)
    assert found.storage == pytest.approx(storage, rel=1e-9)
    assert found.multiplies == pytest.approx(multiplies, rel=1e-9)
    assert found.additions == pytest.approx(additions, rel=1e-9)
    assert found.operations == pytest.approx(operations, rel=1e-9)
    assert found.value == pytest.approx(storage / 36.5e6 + operations / 10.49e9, rel=1e-9)
    assert found.value == pytest.approx(value, rel=2e-7), "as printed, to seven figures"


def test_the_worked_example_on_imagenet(example: ArchGraph) -> None:
    """Modes A and F."""
    assert score(example, IMAGENET).value == pytest.approx(3.5799628e-05, rel=2e-8)
    description = Description(nonzeros=sparse(example), default=4)
    assert score(example, IMAGENET, description).value == pytest.approx(4.616574e-06, rel=2e-7)


def test_the_worked_example_with_an_adder_tree(example: ArchGraph) -> None:
    """Mode F: 7 bits for signed inputs (63 bit-additions for 9 products), 8 for the others.

    Biases have 4 bits and go to sums of 11 and 10 bits; the pool adds 64 numbers of 4 bits.
    """
    pool = sum(n * w for n, w in [(32, 4), (16, 5), (8, 6), (4, 7), (2, 8), (1, 9)])
    expected = 256 * (63 + 11) + 4 * pool + 10 * (25 + 10)
    found = in_mode("F", example, accumulation="tree")
    assert found.additions == expected / 32
    assert found.multiplies == 325.5
    fixed = in_mode("F", example, accumulation="fixed")
    assert fixed.additions == (256 * (8 * 11 + 11) + 4 * 63 * 10 + 10 * (3 * 10 + 10)) / 32


def test_rows_add_up(example: ArchGraph) -> None:
    found = in_mode("D", example)
    kinds = {row.kind: row for row in found.rows}
    conv = kinds["conv"]
    assert (conv.weights, conv.nonzeros, conv.weight_bits, conv.input_bits) == (108, 36, 32, 32)
    assert conv.storage == (36 * 32 + 108) / 32 + 4
    assert kinds["batch_norm"].storage == kinds["batch_norm"].operations == 0
    assert sum(row.storage for row in found.rows) == found.storage
    assert [row.layer for row in found.rows] == [layer.name for layer in example.layers]


# Parameters without norm scales (the norms are folded) and products of convolutions and linear
# layers.
KNOWN = [
    ("efficientnet_b0_224", 1000, 224, 5_267_540, 385_814_752),
    ("efficientnet_b1_224", 1000, 224, 7_794_184 - 31_024, None),
    ("mobilenetv2", 1000, 32, 3_487_816, None),
    ("wrn28_10", 100, 32, None, 5_243_386_368),
]


def products(found: Score) -> float:
    return sum(row.multiplies for row in found.rows if row.kind in ("conv", "linear"))


@pytest.mark.parametrize(("name", "classes", "side", "storage", "macs"), KNOWN)
def test_known_networks(
    name: str, classes: int, side: int, storage: int | None, macs: int | None
) -> None:
    with torch.device("meta"):
        graph = trace(networks.build(name, classes), (3, side, side))
    found = score(graph, IMAGENET)
    assert storage is None or found.storage == storage
    assert macs is None or products(found) == macs


@pytest.mark.parametrize(
    ("name", "storage", "macs"),
    [
        ("mobilenet_v2", 3_487_816, 300_774_272),
        ("efficientnet_b0", 5_267_540, 385_814_752),
        ("resnet18", 11_689_512 - 4_800, 1_814_073_344),
    ],
)
def test_torchvision_s_networks(name: str, storage: int, macs: int) -> None:
    torchvision()
    from torchvision import models

    with torch.device("meta"):
        graph = trace(models.get_model(name, weights=None), (3, 224, 224))
    found = score(graph, IMAGENET)
    assert found.storage == storage
    assert products(found) == macs


def digits_network() -> ArchGraph:
    layers: list[nn.Module] = []
    channels = 1
    for width, stride in ((32, 1), (32, 2), (64, 1), (64, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return trace(nn.Sequential(*layers), (1, 16, 16))


def test_the_small_target() -> None:
    """Dense with the freebie, then pruned and with 4 bits: convolutions 3 and 4 read 4 bits."""
    graph = digits_network()
    dense = score(graph, CIFAR, freebie=True)
    assert (dense.storage, dense.operations) == (32_821, 3_659_168)
    assert dense.value == pytest.approx(1.24803e-03, rel=5e-6)

    *convs, linear = [layer for layer in graph.layers if layer.kind in ("conv", "linear")]
    counts = (288, 9216, 18432, 36864, 640)
    pairs = zip([*convs, linear], counts, strict=True)
    sizes = {f"{layer.name}.weight": count for layer, count in pairs}
    shares = (0.30, 0.80, 0.80, 0.80, 0.65)
    kept = {name: n - int(s * n) for (name, n), s in zip(sizes.items(), shares, strict=True)}
    bits = dict(zip(sizes, (32, 4, 4, 4, 3), strict=True))
    bits |= {f"{layer.name}.input": 4 for layer in convs[2:]}
    pruned = score(graph, CIFAR, Description(bits, kept))
    assert pruned.storage == 4083.0
    assert pruned.operations == pytest.approx(749_986, rel=1e-9)
    assert pruned.value == pytest.approx(1.83358e-04, rel=5e-6)


class Functional(nn.Module):
    """The same two layers twice, residual and pooled: with functions, or with modules."""

    def __init__(self, functions: bool) -> None:
        super().__init__()
        self.functions = functions
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.pool, self.flatten = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        if self.functions:
            y = F.relu(self.conv1(x))
            y = torch.add(self.conv2(y), x)
            return F.adaptive_avg_pool2d(y, 1).flatten(1)
        y = self.conv2(self.relu(self.conv1(x))) + x
        return self.flatten(self.pool(y))


def test_functional_additions_and_activations_are_seen() -> None:
    called = score(trace(Functional(True), (3, 8, 8)), CIFAR)
    held = score(trace(Functional(False), (3, 8, 8)), CIFAR)
    conv = 27 * 3 * 64  # products; as many additions with the bias
    assert called.multiplies == held.multiplies == 2 * conv + 192 + 3
    assert called.additions == held.additions == 2 * conv + 192 + 3 * 63
    (sums,) = [row for row in called.rows if row.kind == "add"]
    assert (sums.additions, sums.multiplies, sums.storage) == (192, 0, 0)


def test_norms_that_cannot_be_folded_are_counted() -> None:
    """In a pre-activation block the first norm reads a sum: 2 C values, 2 operations a number."""
    with torch.device("meta"):
        graph = trace(networks.build("preact_resnet38", 10), (3, 32, 32))
    rows = {row.layer: row for row in score(graph, CIFAR).rows if row.kind == "batch_norm"}
    # The very first norm reads the stem, but so does the shortcut.
    assert len(rows) == 12 * 3 + 1
    counted = [row for row in rows.values() if row.operations]
    assert len(counted) == 12 + 1
    assert all(row.storage == 2 * row.shape[0] for row in counted)
    assert all(row.multiplies == row.additions == torch.Size(row.shape).numel() for row in counted)
    assert all(row.storage == 0 for row in rows.values() if not row.operations)


def test_relu_of_a_narrow_convolution_is_as_narrow_but_swish_is_not() -> None:
    for activation, width in ((nn.ReLU(), 4), (nn.SiLU(), 32)):
        graph = trace(nn.Sequential(nn.Conv2d(1, 2, 1), activation), (1, 3, 3))
        conv, active = graph.layers
        bits = {f"{conv.name}.weight": 4, f"{conv.name}.input": 3}
        row = score(graph, CIFAR, Description(bits)).rows[1]
        assert row.multiplies == 18 * (1 if width == 4 else 3) * width / 32
        bits[f"{active.name}.input"] = 8
        row = score(graph, CIFAR, Description(bits)).rows[1]
        assert row.multiplies == 18 * (1 if width == 4 else 3) * 8 / 32


def test_widest_of_weight_and_input_counts() -> None:
    """3 by 5 bits are 5/32 of an operation, 32 by 8 a whole one."""
    graph = trace(nn.Sequential(nn.Linear(6, 2, bias=False)), (6,))
    (layer,) = graph.layers
    for weight, read, width in ((3, 5, 5), (32, 8, 32), (2.4, 2, 3)):
        bits = {f"{layer.name}.weight": weight, f"{layer.name}.input": read}
        found = score(graph, CIFAR, Description(bits))
        assert found.multiplies == 12 * width / 32
        assert found.storage == pytest.approx(12 * weight / 32)


def test_channel_shuffle_is_a_stored_permutation() -> None:
    graph = trace(nn.Sequential(nn.ChannelShuffle(2)), (8, 3, 3))
    found = score(graph, CIFAR)
    assert (found.storage, found.multiplies) == ((64 + 8) / 32, 72)


def test_what_goes_with_a_tensor_is_stored(example: ArchGraph) -> None:
    conv = names(example)["conv"]
    plain = score(example, CIFAR)
    more = Description(extra={f"{conv}.weight": 4 * 32, f"{conv}.input": 32})
    assert score(example, CIFAR, more).storage == plain.storage + 5


@pytest.mark.parametrize("tensor", ["conv.weight", "linear.bias", "linear.input"])
def test_freebie_is_refused_once_anything_is_narrow(example: ArchGraph, tensor: str) -> None:
    kind, _, part = tensor.partition(".")
    name = f"{names(example)[kind]}.{part}"
    with pytest.raises(EsnacError, match=rf"freebie.* {name} has 15 bits.* without the freebie"):
        score(example, CIFAR, Description({name: 15}), freebie=True)
    assert score(example, CIFAR, Description({name: 16}), freebie=True).freebie


def test_freebie_needs_full_additions_and_a_wide_default(example: ArchGraph) -> None:
    with pytest.raises(EsnacError, match="adds at 32 bits; it excludes 'tree'"):
        score(example, CIFAR, freebie=True, accumulation="tree")
    with pytest.raises(EsnacError, match="everything without a name has 4 bits"):
        score(example, CIFAR, Description(default=4), freebie=True)


def test_warning_below_the_target(example: ArchGraph) -> None:
    assert "below 80 %" in (score(example, CIFAR, quality=0.7999).warning or "")
    assert score(example, CIFAR, quality=0.8).warning is None
    assert score(example, CIFAR).warning is None


def test_a_description_of_another_network(example: ArchGraph) -> None:
    conv, norm = names(example)["conv"], names(example)["batch_norm"]
    with pytest.raises(UnknownNameError, match=rf"Did you mean '{conv}\.weight'"):
        score(example, CIFAR, Description({f"{conv}.weigth": 4}))
    with pytest.raises(UnknownNameError, match=f"'{norm}.weight'"):
        score(example, CIFAR, Description({f"{norm}.weight": 4}))
    with pytest.raises(EsnacError, match="has 108 values; 109 of them"):
        score(example, CIFAR, Description(nonzeros={f"{conv}.weight": 109}))
