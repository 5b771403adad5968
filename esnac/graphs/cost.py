"""Parameters, multiply-accumulates and bytes of a network, counted on its graph.

Convention: parameters are the learned tensors (weights, biases, norm scales and shifts; running
statistics are not). One MAC is one multiply-add of a convolution or linear layer; biases, norms,
activations, pooling and additions count nothing. `torch.utils.flop_counter` counts two operations
for each of these MACs. Bytes are those of the tensors in a weights file: float32, running
statistics included (with a step counter of 8 bytes per norm), the file's header left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from esnac.graphs.arch_graph import ArchGraph, Layer
from esnac.graphs.groups import is_depthwise
from esnac.graphs.space import Candidates, Space

#: Bytes: a float32; running mean and variance of one channel; the step counter of a norm (int64).
_FLOAT, _STATISTICS, _COUNTER = 4, 8, 8


@dataclass(frozen=True)
class Cost:
    """`params`: number of learned values; `macs`: multiply-accumulates for one input.

    `bytes`: size of the tensors in a file.
    """

    params: int
    macs: int
    bytes: int


def cost(graph: ArchGraph) -> Cost:
    """Exact cost of one architecture."""
    params = macs = buffers = 0
    for layer in graph.layers:
        weight, vector, area = _coefficients(layer)
        pairs = layer.in_shape[0] * layer.out_shape[0]
        if layer.kind == "conv":
            pairs //= layer.attributes["groups"]
        params += weight * pairs + vector * layer.out_shape[0]
        macs += weight * pairs * area
        if _is_tracked(layer):
            buffers += _STATISTICS * layer.out_shape[0] + _COUNTER
    return Cost(params, macs, _FLOAT * params + buffers)


def candidate_costs(space: Space, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and MACs (N each, int64) of many candidates, without making their graphs."""
    reads, makes = space.widths(candidates.kept)
    layers = space.graph.layers
    weight, vector, area = np.array([_coefficients(layer) for layer in layers], dtype=np.int64).T
    groups = np.array(
        [layer.attributes.get("groups", 1) if layer.kind == "conv" else 1 for layer in layers]
    )
    depthwise = np.array([is_depthwise(layer) for layer in layers])
    pairs = np.where(depthwise, makes, reads * makes // groups)
    present = ~candidates.removed
    params = ((weight * pairs + vector * makes) * present).sum(axis=1)
    macs = (weight * pairs * area * present).sum(axis=1)
    return params, macs


def candidate_bytes(space: Space, candidates: Candidates) -> np.ndarray:
    """Bytes (N, int64) of many candidates, without making their graphs."""
    params, _ = candidate_costs(space, candidates)
    _, makes = space.widths(candidates.kept)
    tracked = np.array([_is_tracked(layer) for layer in space.graph.layers]) & ~candidates.removed
    size: np.ndarray = _FLOAT * params + ((_STATISTICS * makes + _COUNTER) * tracked).sum(axis=1)
    return size


def _is_tracked(layer: Layer) -> bool:
    """Whether the layer has running statistics."""
    return layer.kind == "batch_norm" and bool(layer.attributes["track"])


def _coefficients(layer: Layer) -> tuple[int, int, int]:
    """Weights per pair of connected channels, values per output channel, output positions."""
    attributes = layer.attributes
    if layer.kind == "conv":
        return (
            math.prod(attributes["kernel"]),
            int(attributes["bias"]),
            math.prod(layer.out_shape[1:]),
        )
    if layer.kind == "linear":
        return 1, int(attributes["bias"]), 1
    if layer.kind in ("batch_norm", "group_norm") and attributes["affine"]:
        return 0, 2, 1
    return 0, 0, 1
