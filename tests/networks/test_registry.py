"""Every registered network: counts known from the literature, tracing, shapes, gradients."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from esnac import networks
from esnac.errors import UnknownNameError

NAMES = sorted(networks.NETWORKS)

PARAMETERS = [
    # Cao et al. 2019 (100 classes) and Zagoruyko and Komodakis 2016 (36.5 M)
    ("resnet18", 100, 11_220_132),
    ("resnet34", 100, 21_328_292),
    ("vgg19", 100, 20_086_692),
    ("shufflenet", 100, 1_059_960),
    ("wrn28_10", 100, 36_536_884),
    # Table 1 of the WRN paper: 2.7 M and 2.2 M
    ("wrn16_4", 10, 2_748_890),
    ("wrn40_2", 10, 2_243_546),
    # Option-A counts of table 6 of the ResNet paper (0.27, 0.46, 0.66, 0.85, 1.7 M) + 2,752 for
    # two projections with batch norm: 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    ("resnet20", 10, 269_722 + 2_752),
    ("resnet32", 10, 464_154 + 2_752),
    ("resnet44", 10, 658_586 + 2_752),
    ("resnet56", 10, 853_018 + 2_752),
    ("resnet110", 10, 1_727_962 + 2_752),
    # torchvision's mobilenet_v2: strides leave the count as it is
    ("mobilenetv2", 1000, 3_504_872),
    ("vgg16", 10, 14_728_266),
    # torchvision's efficientnet_b0 and _b1; with 10 classes 990 * 1281 fewer
    ("efficientnet_b0_224", 1000, 5_288_548),
    ("efficientnet_b1_224", 1000, 7_794_184),
    ("efficientnet_b0", 10, 5_288_548 - 990 * 1_281),
    ("efficientnet_b1", 10, 7_794_184 - 990 * 1_281),
    # Network slimming's, without their channel selections; 1.70 M in the paper of ResNet-164
    ("preact_resnet38", 10, 404_954),
    ("preact_resnet92", 10, 961_370),
    ("preact_resnet164", 10, 1_703_258),
    # With 9,360 channel selections the 1.07 M of network slimming; 0.77 M of DenseNet-BC-100-12
    ("densenet40", 10, 1_068_658 - 9_360),
    ("densenet100", 10, 769_162),
    # Polino et al. 2018: teacher, deeper student, students 1 to 3 of CIFAR-10
    ("convnet8", 10, 5_346_142),
    ("convnet11", 10, 5_825_396),
    ("convnet4_1", 10, 1_000_235),
    ("convnet4_2", 10, 318_415),
    ("convnet4_3", 10, 111_935),
]

# Multiplications of convolutions and linear layers at 3 x 32 x 32: they pin the strides.
MACS = [
    ("resnet18", 100, 555_468_800),
    ("vgg19", 100, 398_182_400),
    ("wrn28_10", 100, 5_243_386_368),
    ("mobilenetv2", 10, 87_976_448),
]

# The same at 3 x 224 x 224, of torchvision's efficientnet_b0.
MACS_224 = [("efficientnet_b0_224", 1000, 385_814_752)]


def meta(name: str, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    with torch.device("meta"):
        return networks.build(name, num_classes, in_channels).eval()


def test_parameter_table_covers_the_registry() -> None:
    assert sorted(name for name, _, _ in PARAMETERS) == NAMES


@pytest.mark.parametrize(("name", "classes", "expected"), PARAMETERS)
def test_parameters(name: str, classes: int, expected: int) -> None:
    assert sum(p.numel() for p in meta(name, classes).parameters()) == expected


def flops(network: nn.Module, side: int) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "classes", "expected"), MACS)
def test_macs(name: str, classes: int, expected: int) -> None:
    assert flops(meta(name, classes), 32) == 2 * expected


@pytest.mark.parametrize(("name", "classes", "expected"), MACS_224)
def test_macs_at_224(name: str, classes: int, expected: int) -> None:
    assert flops(meta(name, classes), 224) == 2 * expected


@pytest.mark.parametrize(
    ("name", "expected"), [("resnet18", 60), ("resnet34", 108), ("vgg19", 55), ("shufflenet", 159)]
)
def test_published_node_counts(name: str, expected: int) -> None:
    """Everything but the residual additions is a node (Cao et al. 2019)."""
    nodes = fx.symbolic_trace(meta(name)).graph.nodes
    layers = [n for n in nodes if n.op not in ("placeholder", "output")]
    assert sum(n.target is not operator.add for n in layers) == expected


@pytest.mark.parametrize("name", NAMES)
def test_traces_to_torch_layers_each_used_once(name: str) -> None:
    network = meta(name)
    traced = fx.symbolic_trace(network)
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert len(calls) == len(set(calls))
    assert all(type(network.get_submodule(c)).__module__.startswith("torch.nn") for c in calls)
    functions = {n.target for n in traced.graph.nodes if n.op == "call_function"}
    assert functions <= {operator.add, operator.mul, torch.cat}
    assert not [n for n in traced.graph.nodes if n.op in ("call_method", "get_attr")]


@pytest.mark.parametrize("name", NAMES)
def test_32x32_and_tracing_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = networks.build(name, 7).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits = network(images)
        traced = fx.symbolic_trace(network)(images)
    assert logits.shape == (1, 7)
    assert torch.isfinite(logits).all()
    assert torch.equal(traced, logits)


@pytest.mark.parametrize("name", NAMES)
def test_8x8_forward_and_backward_with_one_channel(name: str) -> None:
    torch.manual_seed(0)
    network = networks.build(name, 10, in_channels=1)
    logits = network(torch.randn(4, 1, 8, 8))
    assert logits.shape == (4, 10)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    assert any(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)


def test_initial_weights_come_from_the_global_generator() -> None:
    torch.manual_seed(3)
    first = networks.build("resnet20", 10).state_dict()
    second = networks.build("resnet20", 10).state_dict()
    torch.manual_seed(3)
    again = networks.build("resnet20", 10).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_families() -> None:
    expected = {
        "resnet20": "resnet",
        "resnet34": "resnet",
        "vgg19": "vgg",
        "wrn28_10": "wide_resnet",
        "shufflenet": "shufflenet",
        "mobilenetv2": "mobilenet",
        "efficientnet_b0": "efficientnet",
        "preact_resnet38": "preact_resnet",
        "densenet100": "densenet",
        "convnet8": "convnet",
        "package.module:network": "custom",
    }
    assert {name: networks.family(name) for name in expected} == expected
    assert {networks.family(name) for name in NAMES} == set(networks.FAMILIES)


@pytest.mark.parametrize("ask", [lambda name: networks.build(name, 10), networks.family])
def test_unknown_name_lists_the_known(ask) -> None:
    with pytest.raises(UnknownNameError) as caught:
        ask("resnet19")
    message = str(caught.value)
    assert "Did you mean 'resnet1" in message
    assert all(name in message for name in NAMES)
    assert "package.module:callable" in message
