"""The students that can be reached from a teacher's graph, many at a time, without building any.

Candidates are arrays: which layers are removed (N x L), how many channels each group keeps (N x G),
which skips are added (N x P). Layer widths follow by one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import numpy as np

from esnac.errors import SettingsError, nearest
from esnac.graphs.arch_graph import ArchGraph, Layer
from esnac.graphs.groups import COMBINING, ChannelGroups, channel_groups, is_depthwise
from esnac.graphs.moves import Moves

Tie = Literal["count", "dependency"]

#: Kinds that only route or mask channels; an identity in their place saves nothing.
_KEPT_KINDS = COMBINING | {
    "identity",
    "slice",
    "flatten",
    "dropout",
    "dropout2d",
    "stochastic_depth",
}


@dataclass(frozen=True)
class Candidates:
    """N students: `removed` (N x L, bool), `kept` (N x G, int64), `skips` (N x P, bool)."""

    removed: np.ndarray
    kept: np.ndarray
    skips: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def keys(self) -> list[bytes]:
        """One key per candidate; equal keys mean equal students."""
        bits = np.packbits(np.hstack([self.removed, self.skips]), axis=1)
        return [b.tobytes() + k.tobytes() for b, k in zip(bits, self.kept, strict=True)]

    def select(self, index: np.ndarray) -> Candidates:
        return Candidates(self.removed[index], self.kept[index], self.skips[index])


def joined(parts: Iterable[Candidates]) -> Candidates:
    """All candidates of `parts` in order; at least one part."""
    listed = list(parts)
    return Candidates(
        np.concatenate([part.removed for part in listed]),
        np.concatenate([part.kept for part in listed]),
        np.concatenate([part.skips for part in listed]),
    )


@dataclass(frozen=True)
class Move:
    """One removal or skip and the pairs of channel groups it makes equal."""

    merges: tuple[tuple[int, int], ...]


class Space:
    """All moves from one teacher graph (L layers, G channel groups, T tied sets, P skips).

    `tie` is "count" (groups of the same size shrink together, as published) or "dependency" (each
    group by itself). `protected` holds name patterns of layers that keep their place and their
    channels; `multiple` rounds kept channels up to its multiples, in groups that have such a number
    (SettingsError when there is none); `minimum` is the least number of channels a group keeps,
    `shrink_limit` the largest share of them that goes.
    """

    def __init__(
        self,
        graph: ArchGraph,
        tie: Tie = "count",
        protected: Sequence[str] = (),
        multiple: int = 1,
        minimum: int = 1,
        shrink_limit: float = 1.0,
    ) -> None:
        self.graph = graph
        self.groups: ChannelGroups = channel_groups(graph)
        self.tie: Tie = tie
        held = _matching(graph, protected)
        self.frozen = self.groups.frozen.copy()
        for number in held:
            self.frozen |= self.groups.makes_share[number] > 0
        self.removable, removals = self._removals(held)
        self.skips, additions = self._skips()
        self._moves = removals + additions
        self._settle(multiple, minimum, shrink_limit)

    def _removals(self, held: set[int]) -> tuple[np.ndarray, list[Move]]:
        """Layers whose input and output shapes agree, as an index array, with their moves."""
        numbers, moves = [], []
        for number, layer in enumerate(self.graph.layers[:-1]):
            if layer.in_shape != layer.out_shape or layer.kind in _KEPT_KINDS or number in held:
                continue
            merges = self._merges(self.groups.reads[number], self.groups.makes[number])
            if merges is not None:
                numbers.append(number)
                moves.append(Move(merges))
        return np.array(numbers, dtype=np.int64), moves

    def _skips(self) -> tuple[np.ndarray, list[Move]]:
        """Edges (P x 2) that could be added between layers of matching shapes."""
        edges, moves = [], []
        layers = self.graph.layers
        for j, target in enumerate(layers):
            if target.kind in COMBINING:
                continue
            for i in range(j):
                if layers[i].out_shape != target.in_shape or i in target.inputs:
                    continue
                merges = self._merges(self.groups.makes[i], self.groups.reads[j])
                if merges is not None:
                    edges.append((i, j))
                    moves.append(Move(merges))
        return np.array(edges, dtype=np.int64).reshape(-1, 2), moves

    def _merges(self, a: np.ndarray, b: np.ndarray) -> tuple[tuple[int, int], ...] | None:
        """Group pairs that become equal when tensor b receives tensor a; None when they cannot.

        They can when both tensors are made of the same groups in any order (a channel shuffle), or
        of groups of equal sizes in the same order.
        """
        groups = self.groups
        a, b = groups.group_of_unit[a], groups.group_of_unit[b]
        if np.array_equal(np.sort(a), np.sort(b)):
            return ()
        pairs = np.unique(np.stack([a, b]), axis=1)
        if len(set(pairs[0])) != pairs.shape[1] or len(set(pairs[1])) != pairs.shape[1]:
            return None
        if not np.array_equal(groups.sizes[pairs[0]], groups.sizes[pairs[1]]):
            return None
        return tuple((int(min(p)), int(max(p))) for p in pairs.T if p[0] != p[1])

    def _settle(self, multiple: int, minimum: int, shrink_limit: float) -> None:
        """Tied sets, divisors and minimum widths, equal for all groups that a move may merge."""
        count = len(self.groups)
        pairs = sorted({pair for move in self._moves for pair in move.merges})
        self._pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        index = {pair: row for row, pair in enumerate(pairs)}
        self._triggers = np.zeros((len(self._moves), len(pairs)), dtype=np.float32)
        for row, move in enumerate(self._moves):
            self._triggers[row, [index[pair] for pair in move.merges]] = 1
        sizes = self.groups.sizes
        tied: dict[tuple[int, int], int] = {}
        self.tied_set = np.array(
            [
                tied.setdefault((int(size), -1 if self.tie == "count" else group), len(tied))
                for group, size in enumerate(sizes)
            ],
            dtype=np.int64,
        )
        self.num_tied = len(tied)
        together = [(a, b) for a, b in pairs]
        together += [
            (int(np.flatnonzero(self.tied_set == t)[0]), g) for g, t in enumerate(self.tied_set)
        ]
        divisors = self.groups.divisors.copy()
        for members in _components(count, together):
            divisor = math.lcm(*(int(d) for d in divisors[members]))
            fits = sizes[members] % divisor == 0
            divisors[members] = np.where(fits, divisor, divisors[members])
            self.frozen[members] |= ~fits
        self.divisors = divisors
        self.steps = self._steps(multiple)
        least = np.maximum(np.floor((1 - shrink_limit) * sizes + 1e-9).astype(np.int64), minimum)
        self._least = np.minimum(sizes, -(-least // self.steps) * self.steps)
        # Merged groups take the width of the one that comes first here: frozen groups lead.
        order = np.argsort(~self.frozen, kind="stable")
        self._priority = np.empty(count, dtype=np.int64)
        self._priority[order] = np.arange(count)
        self._by_priority = order

    def _steps(self, multiple: int) -> np.ndarray:
        """Channels by which each group grows and shrinks (G).

        Where the multiple does not divide what a group has, the group's own divisor rules.
        """
        sizes, both = self.groups.sizes, np.lcm(self.divisors, multiple)
        fits = sizes % both == 0
        if multiple > 1 and not fits[~self.frozen].any():
            counts = ", ".join(map(str, np.unique(sizes[~self.frozen]))) or "none"
            raise SettingsError(
                f"space.multiple = {multiple} divides none of the channel counts of this network "
                f"that can shrink: {counts}."
            )
        return np.where(fits, both, self.divisors)

    def kept(self, shrink: np.ndarray) -> np.ndarray:
        """Channels kept per group (N x G) when tied set t drops the share `shrink[:, t]` (N x T).

        floor((1 - r) C), rounded up to the group's divisor, at least the minimum width.
        """
        return self.kept_at(1 - shrink[:, self.tied_set])

    def kept_at(self, share: np.ndarray) -> np.ndarray:
        """Channels kept per group (N x G) when it is to keep the share `share` (N x G) of them."""
        sizes, steps = self.groups.sizes, self.steps
        wanted = np.floor(share * sizes + 1e-9).astype(np.int64)
        wanted = np.maximum(-(-wanted // steps) * steps, self._least)
        return np.where(self.frozen, sizes, np.minimum(wanted, sizes))

    def resolve(self, removed: np.ndarray, kept: np.ndarray, skips: np.ndarray) -> Candidates:
        """Consistent candidates: groups that removals and skips join keep equally many channels.

        Skips into removed layers are dropped. Shapes as in `Candidates`.
        """
        if len(self.skips):
            skips = skips & ~removed[:, self.skips[:, 1]]
        labels = self.labels(removed, skips)
        return Candidates(removed, np.take_along_axis(kept, labels, axis=1), skips)

    def labels(self, removed: np.ndarray, skips: np.ndarray) -> np.ndarray:
        """For each candidate and group the group whose width it takes (N x G)."""
        active = np.hstack([removed[:, self.removable], skips]).astype(np.float32)
        joined = active @ self._triggers > 0
        labels = np.tile(self._priority, (len(removed), 1))
        used = np.flatnonzero(joined.any(axis=0))
        changed = len(used) > 0
        while changed:
            changed = False
            for row in used:
                a, b = self._pairs[row]
                rows = np.flatnonzero(joined[:, row] & (labels[:, a] != labels[:, b]))
                if len(rows):
                    low = np.minimum(labels[rows, a], labels[rows, b])
                    labels[rows, a] = labels[rows, b] = low
                    changed = True
        return self._by_priority[labels]

    def widths(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Channels that each layer reads and makes, both N x L."""
        return kept @ self.groups.reads_share.T, kept @ self.groups.makes_share.T

    def identity(self) -> Candidates:
        """The one candidate without any move: the teacher itself."""
        none = np.zeros((1, len(self.graph)), dtype=bool)
        skips = np.zeros((1, len(self.skips)), dtype=bool)
        return Candidates(none, self.groups.sizes[None].astype(np.int64), skips)

    def moves(self, candidates: Candidates, row: int) -> Moves:
        """One candidate as plain data."""
        edges = self.skips[candidates.skips[row]]
        return Moves(
            tuple(np.flatnonzero(candidates.removed[row]).tolist()),
            tuple(candidates.kept[row].tolist()),
            tuple((int(i), int(j)) for i, j in edges),
        )

    def candidates(self, moves: Iterable[Moves]) -> Candidates:
        """The inverse of `moves`, for many; raises SettingsError for moves of another space."""
        listed = list(moves)
        removed = np.zeros((len(listed), len(self.graph)), dtype=bool)
        kept = np.zeros((len(listed), len(self.groups)), dtype=np.int64)
        skips = np.zeros((len(listed), len(self.skips)), dtype=bool)
        for row, item in enumerate(listed):
            edges = [self._edge_number.get(edge) for edge in item.skips]
            outside = set(item.removed) - set(self.removable.tolist())
            if None in edges or outside or len(item.kept) != len(self.groups):
                raise SettingsError("These moves belong to another network or search space.")
            removed[row, list(item.removed)] = True
            kept[row] = item.kept
            skips[row, [edge for edge in edges if edge is not None]] = True
        return Candidates(removed, kept, skips)

    @cached_property
    def first_of_set(self) -> np.ndarray:
        """The first group of each tied set (T), of those that can be shrunk if there are any."""
        order = np.argsort(self.frozen, kind="stable")
        first: np.ndarray = order[np.unique(self.tied_set[order], return_index=True)[1]]
        return first

    @cached_property
    def set_depth(self) -> np.ndarray:
        """The number of the first layer that makes channels of each tied set (T)."""
        made = self.groups.makes_share > 0
        depth = np.where(made.any(axis=0), made.argmax(axis=0), 0)
        return np.array([depth[self.tied_set == t].min() for t in range(self.num_tied)])

    @cached_property
    def blocks(self) -> np.ndarray:
        """Removable layers that belong together, as masks over layers (B x L).

        First every convolution with the removable layers that follow it up to the next one, then
        the removable layers between two places where edges meet (a residual block's branch). Only
        masks of two and more layers; none twice.
        """
        graph = self.graph
        removable = np.zeros(len(graph), dtype=bool)
        removable[self.removable] = True
        units = [layer.kind in ("conv", "linear") for layer in graph.layers]
        meets = [len(layer.inputs) > 1 for layer in graph.layers]
        masks: dict[bytes, np.ndarray] = {}
        for starts in (units, meets):
            number = np.cumsum(starts)
            for block in np.unique(number):
                mask = removable & (number == block)
                if mask.sum() > 1:
                    masks.setdefault(mask.tobytes(), mask)
        return np.array(list(masks.values()), dtype=bool).reshape(-1, len(graph))

    @cached_property
    def _edge_number(self) -> dict[tuple[int, int], int]:
        return {(int(i), int(j)): number for number, (i, j) in enumerate(self.skips)}

    def apply(self, moves: Moves) -> ArchGraph:
        """The student's graph: same layer numbers, removed layers as identities."""
        candidate = self.candidates([moves])
        reads, makes = self.widths(candidate.kept)
        added: dict[int, list[int]] = {}
        for i, j in moves.skips:
            added.setdefault(j, []).append(i)
        layers = tuple(
            self._student_layer(
                number, number in moves.removed, int(reads[0, number]), int(makes[0, number]),
                tuple(added.get(number, ())), candidate.kept[0],
            )
            for number in range(len(self.graph))
        )  # fmt: skip
        return ArchGraph(layers, self.graph.input_shape)

    def _student_layer(
        self,
        number: int,
        removed: bool,
        reads: int,
        makes: int,
        added: tuple[int, ...],
        kept: np.ndarray,
    ) -> Layer:
        layer = self.graph.layers[number]
        in_shape = (reads, *layer.in_shape[1:])
        inputs = layer.inputs + added
        if removed:
            return Layer(layer.name, "identity", inputs, in_shape, in_shape)
        attributes = dict(layer.attributes)
        if is_depthwise(layer):
            attributes["groups"] = reads
        if layer.kind == "slice":
            before = self.groups.reads[number][: attributes["start"]]
            ranks, owners = self.groups.rank_of_unit[before], self.groups.group_of_unit[before]
            attributes["start"] = int(np.sum(ranks < kept[owners]))
            attributes["stop"] = attributes["start"] + makes
        return replace(
            layer,
            inputs=inputs,
            in_shape=in_shape,
            out_shape=(makes, *layer.out_shape[1:]),
            attributes=attributes,
        )


def _matching(graph: ArchGraph, patterns: Sequence[str]) -> set[int]:
    """Numbers of the layers whose name or source matches one of the shell-style patterns."""
    found: set[int] = set()
    for pattern in patterns:
        hits = {
            number
            for number, layer in enumerate(graph.layers)
            if fnmatchcase(layer.name, pattern) or fnmatchcase(layer.source or "", pattern)
        }
        if not hits:
            near = nearest(pattern, [layer.source or layer.name for layer in graph.layers])
            hint = f" Did you mean {near!r}?" if near else ""
            raise SettingsError(
                f"Protected layer {pattern!r} matches no layer of the network.{hint}"
            )
        found |= hits
    return found


def _components(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(pairs)
    return [sorted(component) for component in nx.connected_components(graph)]
