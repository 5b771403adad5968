from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from esnac import networks
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder, encode_slim
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings


class Residual(nn.Module):
    """A strided stem and a grouped convolution with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.grouped(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> ArchGraph:
    return trace(Residual(), (3, 8, 8))


def row(kind: int, **columns: float) -> list[float]:
    """20 features: a one in column `kind`, then the others by name."""
    names = ("kernel", "stride", "padding", "groups", "reads", "makes", "into", "out")
    names += ("span_in", "span_out")
    return [float(kind == i) for i in range(10)] + [columns.get(name, 0.0) for name in names]


#: One edge in, one edge out, each to the next layer: log2(1 + 1) = 1.
CHAIN = {"into": 1, "out": 1, "span_in": 1, "span_out": 1}
#: 8 channels read and made.
EIGHT = {"reads": 3, "makes": 3}


def test_rows_worked_out_by_hand(residual: ArchGraph) -> None:
    kinds = [layer.kind for layer in residual.layers]
    assert kinds == ["conv", "batch_norm", "relu", "conv", "relu", "adaptive_avg_pool", *kinds[6:]]
    expected = [
        row(0, kernel=5, stride=2, padding=2, reads=math.log2(3), makes=3, out=1, span_out=1),
        row(1, **EIGHT, **CHAIN),
        # To the grouped convolution and, past it, to the second ReLU: log2(1 + 2).
        row(2, **EIGHT, into=1, out=2, span_in=1, span_out=math.log2(3)),
        row(0, kernel=3, stride=1, padding=1, groups=2, **EIGHT, **CHAIN),
        row(2, **EIGHT, into=2, out=1, span_in=math.log2(3), span_out=1),
        row(4, **EIGHT, **CHAIN),
    ]
    rows = encode_slim(residual)
    assert rows.shape == (len(residual), SLIM_FEATURES) == (len(residual), 20)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:6], np.array(expected, dtype=np.float32), rtol=1e-6)
    last = row(5, reads=3, makes=math.log2(5), into=1, span_in=1)
    np.testing.assert_allclose(rows[-1], np.array(last, dtype=np.float32), rtol=1e-6)


def test_a_removed_layer_keeps_its_edges_only(residual: ArchGraph) -> None:
    space = Space(residual)
    candidate = space.identity()
    candidate.removed[0, 3] = True
    found = encode_slim(space.apply(space.moves(candidate, 0)))[3]
    np.testing.assert_array_equal(found, np.array(row(9, **CHAIN), dtype=np.float32))


def test_an_added_skip_counts_at_both_ends(residual: ArchGraph) -> None:
    """From the first norm (1) to the second ReLU (4): three layers further on."""
    space = Space(residual)
    candidate = space.identity()
    candidate.skips[0, [tuple(edge) for edge in space.skips.tolist()].index((1, 4))] = True
    before = encode_slim(residual)
    after = SlimEncoder(space).encode(candidate)[0]
    changed = {(i, j): after[i, j] for i, j in np.argwhere(before != after).tolist()}
    assert changed == {(1, 17): 2, (1, 19): 2, (4, 16): 3, (4, 18): 2}


@pytest.mark.parametrize("tie", ["count", "dependency"])
@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "mobilenetv2"])
def test_many_candidates_at_once_equal_one_by_one(name: str, tie: str) -> None:
    space = Space(trace(networks.build(name, 10), (3, 16, 16)), tie=tie)
    drawn = sample(space, SpaceSettings(skip_rates=(0.02,)), 12, np.random.default_rng(0))
    assert drawn.removed.any(axis=1).all()
    assert drawn.skips.any(axis=1).all()
    encoder = SlimEncoder(space)
    rows = encoder.encode(drawn)
    for number in range(len(drawn)):
        one = encode_slim(space.apply(space.moves(drawn, number)))
        np.testing.assert_array_equal(rows[number], one)
    assert np.array_equal(encoder.encode(drawn), rows), "an encoder is not used up"
    assert np.array_equal(encoder.encode(space.identity())[0], encode_slim(space.graph))
    assert encoder.encode(space.candidates([])).shape == (0, len(space.graph), 20)
