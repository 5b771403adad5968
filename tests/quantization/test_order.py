from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks import build
from esnac.quantization.order import ends, quantizable


class Backwards(nn.Module):
    """A plain conv net whose layers are defined from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)
        self.first = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu()))
        return self.out(x.relu().mean((2, 3)))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 10)
        self.recurrent = nn.LSTM(6, 6, batch_first=True)
        self.embedding = nn.Embedding(10, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.recurrent(self.embedding(tokens))[0])


def test_a_plain_conv_net_by_its_calls_and_by_its_graph() -> None:
    network, x = Backwards(), torch.zeros(1, 1, 8, 8)
    assert list(quantizable(network)) == ["out", "second", "first"]
    assert ends(network, [x]) == ({"first.weight"}, {"out.weight"})
    student = StudentNetwork(trace(network, (1, 8, 8)))
    assert ends(student) == ({"first.weight"}, {"out.weight"})
    assert not network._modules["first"]._forward_pre_hooks


def test_a_resnet() -> None:
    network = build("resnet20", 5)
    expected = {"conv1.weight"}, {"fc.weight"}
    assert ends(network, [torch.zeros(1, 3, 8, 8)]) == expected
    student = StudentNetwork(trace(network, (3, 8, 8)))
    assert ends(student) == expected
    assert len(quantizable(student)) == 22


def test_a_recurrent_network() -> None:
    network = Translator()
    tokens = torch.zeros(1, 3, dtype=torch.long)
    assert ends(network, [tokens]) == ({"embedding.weight"}, {"out.weight"})
    names = ("recurrent.weight_ih_l0", "recurrent.weight_hh_l0")
    assert quantizable(network)["recurrent"] == names


def test_of_stacked_recurrent_layers_only_the_outermost_weights() -> None:
    network = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    meets, makes = ends(network, [torch.zeros(5, 1, 3)])
    assert meets == {"weight_ih_l0", "weight_ih_l0_reverse"}
    assert makes == {f"weight_{part}_l1{way}" for part in ("ih", "hh") for way in ("", "_reverse")}


def test_attention_ends_with_its_output_projection() -> None:
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert quantizable(network) == {
        "self_attn": ("self_attn.in_proj_weight", "self_attn.out_proj.weight"),
        "linear1": ("linear1.weight",),
        "linear2": ("linear2.weight",),
    }
    meets, makes = ends(network, [torch.zeros(1, 3, 8)])
    assert (meets, makes) == ({"self_attn.in_proj_weight"}, {"linear2.weight"})
    alone = nn.MultiheadAttention(8, 2)
    x = torch.zeros(3, 1, 8)
    assert ends(alone, [x, x, x]) == ({"in_proj_weight"}, {"out_proj.weight"})


def test_without_inputs_the_order_is_not_known() -> None:
    with pytest.raises(EsnacError, match="give example inputs"):
        ends(Backwards())
