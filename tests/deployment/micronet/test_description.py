from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac.deployment.micronet import Description, describe, score, task
from esnac.errors import EsnacError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.masks import attach_masks
from esnac.graphs.network import StudentNetwork
from esnac.quantization.codes import Codes, Rows, decode, row_length


class Rounded(nn.Module):
    """A quantiser of weights to `table` with one scale per row."""

    def __init__(self, table: Tensor, rows: Rows = "channel") -> None:
        super().__init__()
        self.table, self.rows = table, rows

    def codes(self, weight: Tensor) -> Codes:
        flat = weight.reshape(-1, row_length(tuple(weight.shape), self.rows))
        scale = flat.abs().amax(1, keepdim=True).clamp_min(1e-3)
        codes = (flat[..., None] / scale[..., None] - self.table).abs().argmin(-1)
        return Codes(codes.view(weight.shape), self.table, scale, None, self.rows)

    def forward(self, weight: Tensor) -> Tensor:
        return decode(self.codes(weight))


@dataclass(frozen=True)
class Settings:
    bits: int


class Reads(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.settings = Settings(bits)


@pytest.fixture
def network(example: ArchGraph) -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(example)


def weight_name(network: StudentNetwork, kind: str = "conv") -> str:
    (name,) = [layer.name for layer in network.graph.layers if layer.kind == kind]
    return f"{name}.weight"


def quantise(network: StudentNetwork, name: str, table: Tensor, rows: Rows = "channel") -> None:
    module = network.get_submodule(name.rpartition(".")[0])
    parametrize.register_parametrization(module, "weight", Rounded(table, rows), unsafe=True)


def test_a_plain_student_has_nothing_to_tell(network: StudentNetwork) -> None:
    assert describe(network) == Description()


def test_exact_zeros_and_masks_are_sparsity(network: StudentNetwork) -> None:
    name = weight_name(network)
    keep = torch.arange(108).view(4, 3, 3, 3) % 3 == 0
    attach_masks(network, {name: keep})
    assert describe(network) == Description(nonzeros={name: 36})
    parametrize.remove_parametrizations(network.get_submodule(name[:-7]), "weight")
    assert describe(network).nonzeros == {name: 36}, "and so are the zeros that a mask left"


def test_zeros_by_chance_are_values(network: StudentNetwork) -> None:
    """3 zeros save 96 bits and their mask has 108; 4 zeros save 128."""
    name = weight_name(network)
    weight = network.get_parameter(name).data.view(-1)
    weight[:3] = 0
    assert describe(network).nonzeros == {}
    weight[3] = 0
    assert describe(network).nonzeros == {name: 104}


def test_quantised_weights(network: StudentNetwork) -> None:
    """Evenly spaced points need one scale per channel, others the table too.

    A point that happens to be 0 is a value like any other; only a mask makes a tensor sparse.
    """
    conv, linear = weight_name(network), weight_name(network, "linear")
    quantise(network, conv, torch.linspace(-1, 1, 5))
    quantise(network, linear, torch.tensor([-1.0, -0.2, 0.3, 1.0]))
    found = describe(network)
    assert found.bits == {conv: 3, linear: 2}, "five levels need three bits"
    assert found.extra == {conv: 4 * 32, linear: (10 + 4) * 32}
    assert found.nonzeros == {}
    attach_masks(network, {conv: torch.arange(108).view(4, 3, 3, 3) % 3 == 0})
    assert describe(network).nonzeros == {conv: 36}


@pytest.mark.parametrize(
    ("rows", "table", "values"),
    [
        ("channel", torch.linspace(-1, 1, 4), 4),
        ("tensor", torch.linspace(-1, 1, 4), 4),
        ("tensor", torch.tensor([-1.0, -0.2, 0.3, 1.0]), 1 + 4 + 4),
        (27, torch.linspace(-1, 1, 4), 4 + 4),
    ],
)
def test_scales_of_a_norm_are_stored_where_the_weight_has_none_per_channel(
    network: StudentNetwork, rows: Rows, table: Tensor, values: int
) -> None:
    """A norm of 4 channels follows the convolution of 108 weights, none the linear layer."""
    conv, linear = weight_name(network), weight_name(network, "linear")
    quantise(network, conv, table, rows)
    quantise(network, linear, torch.linspace(-1, 1, 4), "tensor")
    assert describe(network).extra == {conv: values * 32, linear: 32}


def test_quantised_inputs(network: StudentNetwork) -> None:
    name = weight_name(network, "linear").removesuffix(".weight")
    network.get_submodule(name).add_module("input_quantizer", Reads(4))
    found = describe(network)
    assert (found.bits, found.extra) == ({f"{name}.input": 4}, {f"{name}.input": 32})
    network.get_submodule(name).input_quantizer.zero_point = -3
    assert describe(network).extra == {f"{name}.input": 64}


def test_a_quantised_student_is_scored_and_gets_no_freebie(network: StudentNetwork) -> None:
    """Worked example: 108 weights of 4 bits, 4 scales, 4 biases of 32 bits, and 50 of the rest."""
    quantise(network, weight_name(network), torch.linspace(-1, 1, 16))
    cifar, description = task("cifar100"), describe(network)
    assert score(network.graph, cifar, description).storage == 108 / 8 + 4 + 4 + 50
    with pytest.raises(EsnacError, match="freebie"):
        score(network.graph, cifar, description, freebie=True)


@pytest.mark.parametrize("bits", [0, -1, 33, float("nan")])
def test_impossible_bits(bits: float) -> None:
    with pytest.raises(EsnacError, match="a has .* bits; from 1 to 32"):
        Description({"a": bits})
    with pytest.raises(EsnacError, match="the default has"):
        Description(default=bits)


def test_impossible_extra_bits() -> None:
    with pytest.raises(EsnacError, match="a cannot have -1 further bits"):
        Description(extra={"a": -1})
