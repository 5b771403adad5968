from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.errors import SettingsError
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks.resnet import resnet20
from esnac.pruning.layers import aliases, matching, prunable


class Mixed(nn.Module):
    """Kinds of layers that are no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 8)
        self.past = nn.LSTM(8, 8)
        self.look = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)


def test_weights_of_all_kinds_of_layers() -> None:
    assert list(prunable(Mixed())) == [
        "words.weight", "past.weight_ih_l0", "past.weight_hh_l0",
        "look.in_proj_weight", "look.out_proj.weight",
    ]  # fmt: skip


def test_patterns_name_weights_layers_and_layers_of_the_traced_network() -> None:
    network = StudentNetwork(trace(resnet20(10), (3, 8, 8)))
    known = aliases(network, list(prunable(network)))
    whole = matching(known, ["*"])
    assert len(whole) == 22  # 19 convolutions, 2 projections, 1 linear layer
    first = matching(known, ["stages.0.0.conv1"])
    assert len(first) == 1
    assert matching(known, [first[0]]) == first
    assert len(matching(known, ["stages.0.*"])) == 6
    assert len(matching(known, ["*"], ["stages.*"])) == 2


def test_errors_list_near_names() -> None:
    known = aliases(Mixed(), list(prunable(Mixed())))
    with pytest.raises(SettingsError, match=r"'pasd' matches nothing\. Near: past"):
        matching(known, ["pasd"])
    with pytest.raises(SettingsError, match=r"'zzz' matches nothing\. Known: words, past, look"):
        matching(known, ["zzz"])
    with pytest.raises(SettingsError, match="'wordz' matches nothing"):
        matching(known, ["*"], ["wordz"])
    with pytest.raises(SettingsError, match="'past' is named twice"):
        matching(known, ["past", "past"])
    with pytest.raises(SettingsError, match="No layer is left"):
        matching(known, ["past"], ["*"])


def test_masked_weights_keep_their_names() -> None:
    from esnac.graphs.masks import attach_masks

    network = Mixed()
    names = list(prunable(network))
    attach_masks(network, {"past.weight_hh_l0": torch.zeros(32, 8)})
    assert sorted(prunable(network)) == sorted(names)
