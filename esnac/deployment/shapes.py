"""The layer shapes that many students are made of, found without building any student.

Channel counts are rounded up to a multiple of 8 (and of a layer's groups), which keeps the shapes
few. Counts of 1, of the network's input channels and of its classes stay exact.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from esnac.graphs import ops
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.groups import is_depthwise

MULTIPLE = 8

#: The kind of a sum of two tensors, which is no layer of a graph.
ADD = "add"

#: Attributes that change results but no time, and the value that stands for all.
_IMMATERIAL = {"eps": 1e-5, "momentum": 0.1, "p": 0.5, "mode": "row", "slope": 0.01, "alpha": 1.0}
#: Attributes that go with the channels.
_CHANNELS = {"groups": 1, "start": 0, "stop": 0}


@dataclass(frozen=True)
class LayerShape:
    """What decides how long a layer takes; layers of equal shape share one measurement.

    `reads` has the shape of each tensor that the layer is called with, `makes` that of its output,
    all without the batch. `attributes` are pairs of name and value.
    """

    kind: str
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()

    def key(self) -> str:
        """One line of JSON; equal keys mean equal shapes."""
        content = [self.kind, self.reads, self.makes, dict(self.attributes)]
        return json.dumps(content, sort_keys=True)


@dataclass(frozen=True)
class Form:
    """What the students of one graph share of a layer's shape: all but the channels.

    `reads` and `makes` have the image sizes, () for features. The number of groups goes with the
    channels.
    """

    kind: str
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()

    def shape(self, makes: int, groups: int, *reads: int) -> LayerShape:
        """With channels. A concat is given those of all parts together: its parts are equal."""
        if self.kind == "concat":
            reads = _parts(reads[0], len(self.reads))
        attributes = dict(self.attributes)
        if "groups" in attributes:
            attributes["groups"] = groups
        if self.kind == "slice":  # where it starts does not matter, and is not known here
            attributes.update(start=0, stop=makes)
        return LayerShape(
            self.kind,
            tuple((channels, *area) for channels, area in zip(reads, self.reads, strict=True)),
            (makes, *self.makes),
            tuple(attributes.items()),
        )


#: Arguments of `Form.shape`: channels made, groups, channels of each tensor read.
Channels = tuple[int, ...]


class Shapes:
    """The distinct shapes of the layers in N students of one graph with L layers.

    `reads` and `makes` (N x L, int64) are the channels that each layer of each student reads and
    makes, see `Space.widths`. Both methods look at layer `number` in the students `rows` and return
    its form, the distinct channels, and which of these each of `rows` has.
    """

    def __init__(self, graph: ArchGraph, reads: np.ndarray, makes: np.ndarray) -> None:
        self._graph = graph
        self._reads, self._makes = reads, makes
        self._exact = np.array([1, graph.input_shape[0], graph.num_classes])

    def of_layer(self, number: int, rows: np.ndarray) -> tuple[Form, list[Channels], np.ndarray]:
        """The layer itself."""
        layer = self._graph.layers[number]
        read, made, groups = self._rounded(
            layer, self._reads[rows, number], self._makes[rows, number]
        )
        columns, areas = [read], [layer.in_shape[1:]]
        join = ops.operation(layer.kind).join
        if join == "concat":
            areas *= len(layer.inputs)
        elif join == "product":
            columns = [self._factor(i, rows) for i in layer.inputs]
            areas = [self._shape(i)[1:] for i in layer.inputs]
        form = Form(layer.kind, tuple(areas), layer.out_shape[1:], _attributes(layer))
        return form, *_distinct([made, groups, *columns])

    def of_sum(self, number: int, rows: np.ndarray) -> tuple[Form, list[Channels], np.ndarray]:
        """The addition of one more tensor to what the layer reads."""
        area = self._graph.layers[number].in_shape[1:]
        width = self._up(self._reads[rows, number])
        form = Form(ADD, (area, area), area)
        return form, *_distinct([width, np.ones_like(width), width, width])

    def _rounded(
        self, layer: Layer, reads: np.ndarray, makes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Channels read and made, and groups, such that they fit each other (N each)."""
        groups = np.full_like(reads, layer.attributes.get("groups", 1))
        if is_depthwise(layer):
            groups = reads
        # Of the student, not of the teacher: a grouped convolution may be left with one channel
        # per group, a depthwise one with a single channel.
        depthwise = (groups == reads) & (groups > 1) & (layer.kind == "conv")
        step = np.where(depthwise, 1, groups)
        read = self._up(reads, step)
        made = np.where(depthwise, read * (makes // reads), self._up(makes, step))
        if layer.kind == "flatten":
            made = read * math.prod(layer.in_shape[1:])
        return read, made, np.where(depthwise, read, groups)

    def _up(self, channels: np.ndarray, groups: np.ndarray | int = 1) -> np.ndarray:
        step = np.lcm(MULTIPLE, groups)
        return np.where(np.isin(channels, self._exact), channels, -(-channels // step) * step)

    def _factor(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Channels of one factor of a product. One channel, which is broadcast, stays one."""
        if number == INPUT:
            return np.full(len(rows), self._graph.input_shape[0])
        return self._up(self._makes[rows, number])

    def _shape(self, number: int) -> tuple[int, ...]:
        return self._graph.input_shape if number == INPUT else self._graph.layers[number].out_shape


def _distinct(columns: list[np.ndarray]) -> tuple[list[Channels], np.ndarray]:
    """The distinct rows of a table given by its columns (N each), and the row that each has (N)."""
    # One number per row, since numpy sorts numbers far faster than rows.
    code = np.ravel_multi_index(columns, [int(column.max()) + 1 for column in columns])
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    return list(zip(*(column[first].tolist() for column in columns), strict=True)), which


def _parts(channels: int, count: int) -> Channels:
    return tuple(channels // count + (i < channels % count) for i in range(count))


def _attributes(layer: Layer) -> tuple[tuple[str, Any], ...]:
    """Those that cost time, and standard values of the others: all layers have the same there."""
    fixed = _IMMATERIAL | _CHANNELS
    found = {name: fixed.get(name, value) for name, value in layer.attributes.items()}
    return tuple(sorted(found.items()))
