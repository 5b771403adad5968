"""Graphs as short sequences of short vectors: the input of the default engine.

One row per unit, which is a layer together with the norms and activations that come next in
topological order. 23 features: one-hot of ten layer types, kernel, stride, padding, log2 of groups,
log2 of the channels read and made (all of the unit's first layer), how many of its norms and of its
activations are there, number of edges that come into the unit, leave it and stay inside, log2(1 +
span) of the longest of the first two in units. Channels keep a wide range (0..9 for 1..512). A
removed layer is an identity with all attributes zero; its edges stay.
"""

from __future__ import annotations

import numpy as np

from esnac.graphs.encode import ACTIVATION, IDENTITY, NORM, attributes, identity_attributes
from esnac.graphs.groups import is_depthwise
from esnac.graphs.space import Candidates, Space

_GROUPS, _READS, _MAKES = 13, 14, 15
_NORMS, _ACTIVATIONS, _IN, _OUT, _INSIDE, _SPAN_IN, _SPAN_OUT = range(16, 23)
SLIM_FEATURES = 23


class SlimEncoder:
    """Encodes many candidates of one space at once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        layers = space.graph.layers
        every = np.array([attributes(layer) for layer in layers])
        norms, activations, idle = (every[:, kind] > 0 for kind in (NORM, ACTIVATION, IDENTITY))
        starts = ~(norms | activations | idle)
        starts[0] = True
        #: The unit of each layer (L), and the first layer of each unit (U).
        self._unit = np.cumsum(starts) - 1
        self._first = np.flatnonzero(starts)
        self._followers = [
            (column, np.flatnonzero(kind & ~starts))
            for column, kind in ((_NORMS, norms), (_ACTIVATIONS, activations))
        ]
        rows = np.zeros((len(self._first), SLIM_FEATURES), dtype=np.float32)
        rows[:, : _MAKES + 1] = every[self._first]
        for column, followers in self._followers:
            _count(rows[None], np.zeros_like(followers), self._unit[followers], column)
        edges = np.array(space.graph.edges(), dtype=np.int64).reshape(-1, 2)
        self._link(rows[None], np.zeros(len(edges), dtype=np.int64), edges)
        self._base = rows
        self._wide = (rows[:, _MAKES] > 0).astype(np.float32)
        self._depthwise = np.flatnonzero([is_depthwise(layers[n]) for n in self._first])

    def encode(self, candidates: Candidates) -> np.ndarray:
        """N x U x 23, float32."""
        reads, makes = (widths[:, self._first] for widths in self._space.widths(candidates.kept))
        rows = np.repeat(self._base[None], len(candidates), axis=0)
        rows[:, :, _READS] = reads * self._wide
        rows[:, :, _MAKES] = makes * self._wide
        rows[:, self._depthwise, _GROUPS] = reads[:, self._depthwise]
        removed = candidates.removed[:, self._first]
        rows[removed, : _MAKES + 1] = identity_attributes()
        for column, followers in self._followers:
            candidate, gone = np.nonzero(candidates.removed[:, followers])
            _count(rows, candidate, self._unit[followers[gone]], column, -1)
        candidate, skip = np.nonzero(candidates.skips)
        self._link(rows, candidate, self._space.skips[skip])
        return _scaled(rows)

    def _link(self, rows: np.ndarray, candidate: np.ndarray, edges: np.ndarray) -> None:
        """Counts edges between layers (E x 2) of `candidate` (E) into `rows` (N x U x 23)."""
        start, end = self._unit[edges].T
        inside = start == end
        _count(rows, candidate[inside], end[inside], _INSIDE)
        candidate, start, end = candidate[~inside], start[~inside], end[~inside]
        for unit, degree, span in ((end, _IN, _SPAN_IN), (start, _OUT, _SPAN_OUT)):
            _count(rows, candidate, unit, degree)
            np.maximum.at(rows.reshape(-1), _flat(rows, candidate, unit, span), end - start)


def _count(
    rows: np.ndarray, candidate: np.ndarray, unit: np.ndarray, column: int, by: int = 1
) -> None:
    np.add.at(rows.reshape(-1), _flat(rows, candidate, unit, column), by)


def _flat(rows: np.ndarray, candidate: np.ndarray, unit: np.ndarray, column: int) -> np.ndarray:
    """Places in `rows` (contiguous) as one long vector."""
    index: np.ndarray = (candidate * rows.shape[1] + unit) * rows.shape[2] + column
    return index


def _scaled(rows: np.ndarray) -> np.ndarray:
    for column in (_GROUPS, _READS, _MAKES):
        rows[..., column] = np.log2(np.maximum(rows[..., column], 1))
    for column in (_SPAN_IN, _SPAN_OUT):
        rows[..., column] = np.log2(1 + rows[..., column])
    return rows
