"""Parameters and multiply-accumulates of a network, counted on its graph.

Convention: parameters are the learned tensors (weights, biases, norm scales and shifts; running
statistics are not). One MAC is one multiply-add of a convolution or linear layer; biases, norms,
activations, pooling and additions count nothing. `torch.utils.flop_counter` counts two operations
for each of these MACs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from esnac.graphs.arch_graph import ArchGraph, Layer
from esnac.graphs.groups import is_depthwise
from esnac.graphs.space import Candidates, Space


@dataclass(frozen=True)
class Cost:
    """`params`: number of learned values; `macs`: multiply-accumulates for one input."""

    params: int
    macs: int


def cost(graph: ArchGraph) -> Cost:
    """Exact cost of one architecture."""
    params = macs = 0
    for layer in graph.layers:
        weight, vector, area = _coefficients(layer)
        pairs = layer.in_shape[0] * layer.out_shape[0]
        if layer.kind == "conv":
            pairs //= layer.attributes["groups"]
        params += weight * pairs + vector * layer.out_shape[0]
        macs += weight * pairs * area
    return Cost(params, macs)


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
