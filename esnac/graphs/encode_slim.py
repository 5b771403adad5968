"""Graphs as short layer vectors: the input of the default engine.

One row per layer in topological order, 20 features: one-hot of ten layer types, kernel, stride,
padding, log2 of groups, log2 of the channels read and made, number of edges that come in and go
out, log2(1 + span) of the longest of either. Channels keep a wide range (0..9 for 1..512). A
removed layer is an identity with all attributes zero; its edges stay.
"""

from __future__ import annotations

import numpy as np

from esnac.graphs.arch_graph import INPUT, ArchGraph
from esnac.graphs.encode import attributes, identity_attributes
from esnac.graphs.groups import is_depthwise
from esnac.graphs.space import Candidates, Space

_GROUPS, _READS, _MAKES, _IN, _OUT, _SPAN_IN, _SPAN_OUT = range(13, 20)
SLIM_FEATURES = 20


def encode_slim(graph: ArchGraph) -> np.ndarray:
    """One architecture as L x 20, float32."""
    rows = np.zeros((len(graph), SLIM_FEATURES), dtype=np.float32)
    for number, layer in enumerate(graph.layers):
        rows[number, : _MAKES + 1] = attributes(layer)
    edges = np.array([(i, j) for i, j in graph.edges() if i != INPUT], dtype=np.int64)
    _link(rows[None], np.zeros(len(edges), dtype=np.int64), edges.reshape(-1, 2))
    return _scaled(rows)


class SlimEncoder:
    """Encodes many candidates of one space at once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        layers = space.graph.layers
        rows = np.zeros((len(layers), SLIM_FEATURES), dtype=np.float32)
        rows[:, : _MAKES + 1] = [attributes(layer) for layer in layers]
        edges = np.array(space.graph.edges(), dtype=np.int64).reshape(-1, 2)
        _link(rows[None], np.zeros(len(edges), dtype=np.int64), edges)
        self._base = rows
        self._wide = (rows[:, _MAKES] > 0).astype(np.float32)
        self._depthwise = np.flatnonzero([is_depthwise(layer) for layer in layers])

    def encode(self, candidates: Candidates) -> np.ndarray:
        """N x L x 20, float32; row n equals `encode_slim` of that candidate's graph."""
        reads, makes = self._space.widths(candidates.kept)
        rows = np.repeat(self._base[None], len(candidates), axis=0)
        rows[:, :, _READS] = reads * self._wide
        rows[:, :, _MAKES] = makes * self._wide
        rows[:, self._depthwise, _GROUPS] = reads[:, self._depthwise]
        rows[candidates.removed, : _MAKES + 1] = identity_attributes()
        candidate, skip = np.nonzero(candidates.skips)
        _link(rows, candidate, self._space.skips[skip])
        return _scaled(rows)


def _link(rows: np.ndarray, candidate: np.ndarray, edges: np.ndarray) -> None:
    """Counts edges (E x 2) of `candidate` (E) into `rows` (N x L x 20)."""
    start, end = edges.T
    flat, (_, depth, features) = rows.reshape(-1), rows.shape
    came, went = ((candidate * depth + layer) * features for layer in (end, start))
    np.add.at(flat, came + _IN, 1)
    np.add.at(flat, went + _OUT, 1)
    np.maximum.at(flat, came + _SPAN_IN, end - start)
    np.maximum.at(flat, went + _SPAN_OUT, end - start)


def _scaled(rows: np.ndarray) -> np.ndarray:
    for column in (_GROUPS, _READS, _MAKES):
        rows[..., column] = np.log2(np.maximum(rows[..., column], 1))
    for column in (_SPAN_IN, _SPAN_OUT):
        rows[..., column] = np.log2(1 + rows[..., column])
    return rows
