"""Channel groups: which channels of which layers must be kept or dropped together.

Every convolution (not depthwise) and linear layer makes new channels; all other layers pass on the
ones they read. What is added, multiplied or convolved depthwise is one channel seen twice. Channels
made and used by the same layers form a group: any number of its channels can be dropped, at no
loss of consistency. These are the groups *by dependency*; *by count* (Cao et al. 2019) ties those
of equal size on top, see `esnac.graphs.space`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer

#: Layers whose several inputs are not summed.
COMBINING = frozenset({"concat", "multiply"})


@dataclass(frozen=True)
class ChannelGroups:
    """The channel groups of one graph (G groups, L layers).

    A *unit* is a set of channels that are one and the same; `group_of_unit` and `rank_of_unit`
    place it. `reads[l]` and `makes[l]` give the unit of each channel that layer l reads and makes.
    `reads_share` and `makes_share` (L x G) count how often each unit of a group appears there, so
    that with k (G) units kept a layer has `makes_share @ k` output channels.
    """

    sizes: np.ndarray
    divisors: np.ndarray
    frozen: np.ndarray
    group_of_unit: np.ndarray
    rank_of_unit: np.ndarray
    reads: tuple[np.ndarray, ...]
    makes: tuple[np.ndarray, ...]
    reads_share: np.ndarray
    makes_share: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)


def is_depthwise(layer: Layer) -> bool:
    """A convolution in which every input channel makes its own output channels."""
    groups = layer.attributes.get("groups", 1) if layer.kind == "conv" else 1
    return groups > 1 and groups == layer.in_shape[0]


def makes_channels(layer: Layer) -> bool:
    return layer.kind == "linear" or (layer.kind == "conv" and not is_depthwise(layer))


def shuffled(channels: np.ndarray, groups: int) -> np.ndarray:
    """The order in which a channel shuffle passes on what it reads."""
    return channels.reshape(groups, -1).T.reshape(-1)


def channel_groups(graph: ArchGraph) -> ChannelGroups:
    """The groups by dependency of all channels in the graph.

    The network's input and its output are frozen, as is every group that cannot be shrunk without
    breaking a grouped layer.
    """
    walk = _Walk(graph)
    count, unit_of = walk.units()
    reads = tuple(unit_of[ids] for ids in walk.reads)
    makes = tuple(unit_of[ids] for ids in walk.makes)

    labels: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for label, ids in walk.labels:
        units, times = np.unique(unit_of[ids], return_counts=True)
        for unit, repeat in zip(units.tolist(), times.tolist(), strict=True):
            labels[unit].append((label, repeat))
    groups: dict[tuple[tuple[int, int], ...], int] = {}
    group_of_unit = np.array([groups.setdefault(tuple(row), len(groups)) for row in labels])
    sizes = np.bincount(group_of_unit, minlength=len(groups))
    rank_of_unit = _ranks(group_of_unit)

    divisors = np.ones(len(groups), dtype=np.int64)
    for divisor, ids in walk.divided:
        for group in np.unique(group_of_unit[unit_of[ids]]):
            divisors[group] = math.lcm(int(divisors[group]), divisor)
    frozen = sizes % divisors != 0
    for ids in walk.frozen:
        frozen[group_of_unit[unit_of[ids]]] = True

    reads_share = _shares(reads, group_of_unit, sizes, frozen)
    makes_share = _shares(makes, group_of_unit, sizes, frozen)
    return ChannelGroups(
        sizes, divisors, frozen, group_of_unit, rank_of_unit, reads, makes, reads_share, makes_share
    )


class _Walk:
    """One pass over the layers that names every channel and notes which names are the same."""

    def __init__(self, graph: ArchGraph) -> None:
        self.reads: list[np.ndarray] = []
        self.makes: list[np.ndarray] = []
        self.same: list[tuple[np.ndarray, np.ndarray]] = []
        self.divided: list[tuple[int, np.ndarray]] = []
        self.labels: list[tuple[int, np.ndarray]] = []
        self.named = 0
        self.next_label = 0
        self.image = self.new(graph.input_shape[0])
        for layer in graph.layers:
            read = self.combine(layer)
            self.reads.append(read)
            self.makes.append(self.make(layer, read))
        self.frozen = [self.image, self.makes[-1]]

    def new(self, count: int) -> np.ndarray:
        ids = np.arange(self.named, self.named + count)
        self.named += count
        self.label(ids)
        return ids

    def label(self, ids: np.ndarray) -> None:
        self.labels.append((self.next_label, ids))
        self.next_label += 1

    def combine(self, layer: Layer) -> np.ndarray:
        tensors = [self.image if i == INPUT else self.makes[i] for i in layer.inputs]
        if layer.kind == "concat":
            return np.concatenate(tensors)
        widest = max(tensors, key=len)
        for ids in tensors:
            if len(ids) == len(widest):  # a factor with one channel is broadcast, not tied
                self.same.append((widest, ids))
        return widest

    def make(self, layer: Layer, read: np.ndarray) -> np.ndarray:
        attributes = layer.attributes
        if is_depthwise(layer):
            return np.repeat(read, layer.out_shape[0] // layer.in_shape[0])
        if makes_channels(layer):
            made = self.new(layer.out_shape[0])
            self.divide(attributes.get("groups", 1), read, made)
            return made
        if layer.kind == "flatten":
            return np.repeat(read, math.prod(layer.in_shape[1:]))
        if layer.kind == "slice":
            # All three parts: with a group on both sides of a slice, where the slice starts would
            # depend on which of its channels are kept, not only on how many.
            before, part, after = np.split(read, [attributes["start"], attributes["stop"]])
            for ids in (before, part, after):
                if len(ids):
                    self.label(ids)
            return part
        if layer.kind == "channel_shuffle":
            self.divide(attributes["groups"], read)
            return shuffled(read, attributes["groups"])
        if layer.kind == "group_norm":
            self.divide(attributes["groups"], read)
        return read

    def divide(self, divisor: int, *tensors: np.ndarray) -> None:
        if divisor > 1:
            self.divided += [(divisor, ids) for ids in tensors]

    def units(self) -> tuple[int, np.ndarray]:
        """Number of units and the unit of every named channel, in order of first appearance."""
        empty = np.zeros(0, dtype=np.int64)
        a = np.concatenate([empty, *(pair[0] for pair in self.same)])
        b = np.concatenate([empty, *(pair[1] for pair in self.same)])
        ties = coo_array((np.ones(len(a)), (a, b)), shape=(self.named, self.named))
        count, raw = connected_components(ties, directed=False)
        _, first = np.unique(raw, return_index=True)
        order = np.empty(count, dtype=np.int64)
        order[np.argsort(first)] = np.arange(count)
        return count, order[raw]


def _ranks(group_of_unit: np.ndarray) -> np.ndarray:
    """The place of each unit within its group."""
    order = np.argsort(group_of_unit, kind="stable")
    starts = np.searchsorted(group_of_unit[order], group_of_unit[order])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order)) - starts
    return ranks


def _shares(
    tensors: tuple[np.ndarray, ...],
    group_of_unit: np.ndarray,
    sizes: np.ndarray,
    frozen: np.ndarray,
) -> np.ndarray:
    """How often each unit of a group appears in each tensor (L x G); uneven groups are frozen."""
    shares = np.zeros((len(tensors), len(sizes)), dtype=np.int64)
    for row, units in enumerate(tensors):
        channels = np.bincount(group_of_unit[units], minlength=len(sizes))
        shares[row] = channels // sizes
        for group in np.flatnonzero(channels):
            times = np.bincount(units[group_of_unit[units] == group])
            if len(set(times[times > 0].tolist())) > 1 or channels[group] % sizes[group]:
                frozen[group] = True
    return shares
