"""Channels taken out of a student: its groups cut down to chosen units, weights and all.

What is taken out is first made silent: its makers and the norms on its way give zero. Only groups
whose silence reaches every layer that reads them can be cut; then the smaller network computes what
the silent one does. No gathers: a residual trunk loses a channel for all of its users or for none,
and keeps its width where a layer reads it before a norm (pre-activation networks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.groups import is_depthwise, makes_channels, shuffled
from esnac.graphs.inherit import inherit_channels
from esnac.graphs.masks import attach_masks, effective_weights, masks_of_zeros
from esnac.graphs.moves import Moves
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Space

#: Activations that turn zero into something else.
_LOUD = frozenset({"sigmoid", "hardsigmoid", "softplus"})


def removable(space: Space, by_scales: bool) -> np.ndarray:
    """The groups (G, bool) of which channels can be cut without a change of what is computed.

    `by_scales`: when only the scales and shifts of batch norms become zero, as in slimming; else
    the weights that make the channels too. Groups stay that pass a group norm, which mixes its
    channels, or a channel shuffle, behind which blocks of other channels would meet, or
    that a grouped convolution has beside others.
    """
    groups, graph = space.groups, space.graph
    found = ~space.frozen
    silent = _silent(graph, makers=not by_scales)
    for number, layer in enumerate(graph.layers):
        owners = groups.group_of_unit[groups.reads[number]]
        made = groups.group_of_unit[groups.makes[number]]
        if layer.kind in ("group_norm", "channel_shuffle"):
            found[owners] = False
        elif layer.kind == "conv" and layer.attributes["groups"] > 1 and not is_depthwise(layer):
            for channels in (owners, made):  # of several groups, blocks would not stay aligned
                if len(np.unique(channels)) > 1:
                    found[channels] = False
        if makes_channels(layer):
            found[owners[~_read(layer, silent, graph)]] = False
    return found


def remove(network: StudentNetwork, space: Space, chosen: Sequence[np.ndarray]) -> StudentNetwork:
    """A student with the units `chosen` (ranks of each group, ascending) alone.

    `space` is that of the network's graph, tied by dependency. Weights that are masked stay so: the
    masks of the old network are on the new one.
    """
    moves = Moves((), tuple(len(ranks) for ranks in chosen), ())
    graph = space.apply(moves)
    tensors = {**dict(network.named_buffers()), **effective_weights(network)}
    student = StudentNetwork(graph, inherit_channels(space, graph, chosen, tensors))
    student.preparation = network.preparation
    attach_masks(student, masks_of_zeros(student))
    return student.train(network.training)


def _silent(graph: ArchGraph, makers: bool) -> list[np.ndarray]:
    """For each layer, which of the channels it makes would be zero if they were to go."""
    silent: list[np.ndarray] = []
    for layer in graph.layers:
        silent.append(_pass_on(layer, _read(layer, silent, graph), makers))
    return silent


def _read(layer: Layer, silent: list[np.ndarray], graph: ArchGraph) -> np.ndarray:
    image = np.zeros(graph.input_shape[0], dtype=bool)
    tensors = [image if i == INPUT else silent[i] for i in layer.inputs]
    if layer.kind == "concat":
        return np.concatenate(tensors)
    widest = max(map(len, tensors))
    full = [tensor for tensor in tensors if len(tensor) == widest]
    # A product is zero where one factor is, a sum where all terms are.
    return np.any(full, axis=0) if layer.kind == "multiply" else np.all(full, axis=0)


def _pass_on(layer: Layer, read: np.ndarray, makers: bool) -> np.ndarray:
    attributes = layer.attributes
    if is_depthwise(layer):
        made = np.repeat(read, layer.out_shape[0] // layer.in_shape[0])
        return made & (not attributes["bias"]) | makers
    if makes_channels(layer):
        return np.full(layer.out_shape[0], makers)
    if layer.kind == "batch_norm":
        return np.full(layer.out_shape[0], bool(attributes["affine"]))
    if layer.kind in _LOUD:
        return np.zeros_like(read)
    if layer.kind == "flatten":
        return np.repeat(read, math.prod(layer.in_shape[1:]))
    if layer.kind == "slice":
        return read[attributes["start"] : attributes["stop"]]
    if layer.kind == "channel_shuffle":
        return shuffled(read, attributes["groups"])
    return read
