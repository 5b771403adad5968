"""Graphs as sequences of layer vectors, the surrogate's input (Cao et al. 2019, section 3.1).

One row per layer in topological order: one-hot of ten layer types, kernel, stride, padding, groups,
channels read and made, then for offsets 0..127 whether an edge comes from that many layers before,
then the same for edges that go out: 16 + 128 + 128 = 272 features. A removed layer is an identity
with all attributes zero. Kinds beyond the ten types have no type set.
"""

from __future__ import annotations

import numpy as np

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.groups import is_depthwise
from esnac.graphs.space import Candidates, Space

OFFSETS = 128
_TYPES = (
    "conv", "batch_norm", "activation", "max_pool", "avg_pool",
    "linear", "flatten", "concat", "channel_shuffle", "identity",
)  # fmt: skip
_TYPE_OF = {
    "adaptive_avg_pool": "avg_pool", "adaptive_max_pool": "max_pool", "group_norm": "batch_norm",
    "dropout": "identity", "dropout2d": "identity", "stochastic_depth": "identity",
}  # fmt: skip
#: Columns of the types that follow another layer.
NORM, ACTIVATION, IDENTITY = (
    _TYPES.index(name) for name in ("batch_norm", "activation", "identity")
)
_GROUPS, _READS, _MAKES, _INCOMING = 13, 14, 15, 16
_OUTGOING = _INCOMING + OFFSETS
FEATURES = _OUTGOING + OFFSETS


def encode(graph: ArchGraph) -> np.ndarray:
    """One architecture as L x 272, float32."""
    rows = np.zeros((len(graph), FEATURES), dtype=np.float32)
    for number, layer in enumerate(graph.layers):
        rows[number, :_INCOMING] = attributes(layer)
        for i in layer.inputs:
            _link(rows, i, number)
    return rows


class Encoder:
    """Encodes many candidates of one space at once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._base = encode(space.graph)
        layers = space.graph.layers
        self._wide = np.array([attributes(layer)[_MAKES] > 0 for layer in layers], dtype=np.float32)
        self._depthwise = np.flatnonzero([is_depthwise(layer) for layer in layers])

    def encode(self, candidates: Candidates) -> np.ndarray:
        """N x L x 272, float32; row n equals `encode` of that candidate's graph."""
        reads, makes = self._space.widths(candidates.kept)
        rows = np.repeat(self._base[None], len(candidates), axis=0)
        rows[:, :, _READS] = reads * self._wide
        rows[:, :, _MAKES] = makes * self._wide
        rows[:, self._depthwise, _GROUPS] = reads[:, self._depthwise]
        candidate, layer = np.nonzero(candidates.removed)
        rows[candidate, layer, :_INCOMING] = identity_attributes()
        candidate, skip = np.nonzero(candidates.skips)
        start, end = self._space.skips[skip].T
        near = end - start < OFFSETS
        candidate, start, end = candidate[near], start[near], end[near]
        rows[candidate, end, _INCOMING + end - start] = 1
        rows[candidate, start, _OUTGOING + end - start] = 1
        return rows


def attributes(layer: Layer) -> np.ndarray:
    """The first 16 features of a layer: type, kernel, stride, padding, groups, channels."""
    row = np.zeros(_INCOMING, dtype=np.float32)
    kind = _TYPE_OF.get(layer.kind, layer.kind)
    if kind not in _TYPES and kind not in ("multiply", "slice"):
        kind = "activation"
    if kind in _TYPES:
        row[_TYPES.index(kind)] = 1
    if kind == "identity":
        return row
    attributes = layer.attributes
    for column, name in enumerate(("kernel", "stride", "padding"), start=10):
        row[column] = attributes[name][0] if name in attributes else 0
    row[_GROUPS] = attributes.get("groups", 0)
    row[_READS] = layer.in_shape[0]
    row[_MAKES] = layer.out_shape[0]
    return row


def identity_attributes() -> np.ndarray:
    """The first 16 features of a removed layer."""
    row = np.zeros(_INCOMING, dtype=np.float32)
    row[_TYPES.index("identity")] = 1
    return row


def _link(rows: np.ndarray, start: int, end: int) -> None:
    if start != INPUT and end - start < OFFSETS:
        rows[end, _INCOMING + end - start] = 1
        rows[start, _OUTGOING + end - start] = 1
