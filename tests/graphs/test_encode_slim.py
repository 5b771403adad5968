from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from esnac import networks
from esnac.graphs.arch_graph import INPUT, ArchGraph
from esnac.graphs.encode import attributes
from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder
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


NAMES = ("kernel", "stride", "padding", "groups", "reads", "makes", "norms", "activations")
NAMES += ("into", "out", "inside", "span_in", "span_out")


def row(kind: int, **columns: float) -> list[float]:
    """23 features: a one in column `kind`, then the others by name."""
    return [float(kind == i) for i in range(10)] + [columns.get(name, 0.0) for name in NAMES]


#: One edge in, one edge out, each to the next unit: log2(1 + 1) = 1.
CHAIN = {"into": 1, "out": 1, "span_in": 1, "span_out": 1}
#: 8 channels read and made.
EIGHT = {"reads": 3, "makes": 3}
STEM = {"kernel": 5, "stride": 2, "padding": 2, "reads": math.log2(3), "makes": 3}


def test_rows_worked_out_by_hand(residual: ArchGraph) -> None:
    """Units: stem, norm and ReLU; grouped convolution and ReLU; pooling; (flatten;) linear."""
    kinds = [layer.kind for layer in residual.layers]
    assert kinds == ["conv", "batch_norm", "relu", "conv", "relu", "adaptive_avg_pool", *kinds[6:]]
    expected = [
        # Its ReLU feeds the grouped convolution and, past it, that one's ReLU: both the next unit.
        row(0, **STEM, norms=1, activations=1, out=2, inside=2, span_out=1),
        row(0, kernel=3, stride=1, padding=1, groups=2, **EIGHT, activations=1, into=2, out=1,
            inside=1, span_in=1, span_out=1),
        row(4, **EIGHT, **CHAIN),
    ]  # fmt: skip
    space = Space(residual)
    rows = SlimEncoder(space).encode(space.identity())[0]
    assert rows.shape == (len(residual) - 3, SLIM_FEATURES) == (len(residual) - 3, 23)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:3], np.array(expected, dtype=np.float32), rtol=1e-6)
    last = row(5, reads=3, makes=math.log2(5), into=1, span_in=1)
    np.testing.assert_allclose(rows[-1], np.array(last, dtype=np.float32), rtol=1e-6)


def test_a_removed_convolution_keeps_its_edges_and_followers(residual: ArchGraph) -> None:
    space = Space(residual)
    candidate = space.identity()
    candidate.removed[0, 3] = True
    found = SlimEncoder(space).encode(candidate)[0, 1]
    edges = {"into": 2, "out": 1, "inside": 1, "span_in": 1, "span_out": 1}
    np.testing.assert_array_equal(found, np.array(row(9, activations=1, **edges), np.float32))


def test_a_removed_norm_is_no_longer_counted(residual: ArchGraph) -> None:
    space = Space(residual)
    candidate = space.identity()
    candidate.removed[0, 1] = True
    found = SlimEncoder(space).encode(candidate)[0, 0]
    expected = row(0, **STEM, activations=1, out=2, inside=2, span_out=1)
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6)


def test_an_added_skip_counts_at_both_ends(residual: ArchGraph) -> None:
    """From the norm of the first unit to the ReLU of the second."""
    space = Space(residual)
    candidate = space.identity()
    encoder = SlimEncoder(space)
    before = encoder.encode(candidate)[0]
    candidate.skips[0, [tuple(edge) for edge in space.skips.tolist()].index((1, 4))] = True
    after = encoder.encode(candidate)[0]
    changed = {(i, NAMES[j - 10]): after[i, j] for i, j in np.argwhere(before != after).tolist()}
    assert changed == {(0, "out"): 3, (1, "into"): 3}


def plain(teacher: ArchGraph, student: ArchGraph) -> np.ndarray:
    """One student's rows, layer by layer; its units are those of the teacher."""
    kinds = [int(attributes(layer)[:10].argmax()) for layer in teacher.layers]
    follows = [
        n > 0 and any(attributes(layer)[[1, 2, 9]]) for n, layer in enumerate(teacher.layers)
    ]
    unit, rows = [], []
    for number, layer in enumerate(student.layers):
        if not follows[number]:
            rows.append(dict.fromkeys(NAMES, 0.0) | {"head": attributes(layer)})
        elif layer.kind != "identity" and kinds[number] in (1, 2):
            rows[-1][{1: "norms", 2: "activations"}[kinds[number]]] += 1
        unit.append(len(rows) - 1)
    for end, layer in enumerate(student.layers):
        for start in layer.inputs:
            if start == INPUT:
                continue
            a, b = rows[unit[start]], rows[unit[end]]
            if a is b:
                a["inside"] += 1
                continue
            span = unit[end] - unit[start]
            a["out"], a["span_out"] = a["out"] + 1, max(a["span_out"], span)
            b["into"], b["span_in"] = b["into"] + 1, max(b["span_in"], span)
    table = np.zeros((len(rows), 23), dtype=np.float32)
    for line, content in zip(table, rows, strict=True):
        line[:16] = content["head"]
        line[13:16] = np.log2(np.maximum(line[13:16], 1))
        line[16:] = [content[name] for name in NAMES[6:]]
        line[21:] = np.log2(1 + line[21:])
    return table


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
        one = plain(space.graph, space.apply(space.moves(drawn, number)))
        np.testing.assert_array_equal(rows[number], one)
    assert np.array_equal(encoder.encode(drawn), rows), "an encoder is not used up"
    assert len(rows[0]) < len(space.graph) / 2
    assert encoder.encode(space.candidates([])).shape == (0, rows.shape[1], 23)
