"""New candidates from good ones: mutation, crossover, and shrinking until a limit holds.

All functions are batched over candidates and draw from the generator that is passed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from esnac.graphs.space import Candidates, Space
from esnac.search_spaces import SpaceSettings

#: Spread of the factor by which a mutation changes the channels of a tied set, in units of log.
_WIDTH_SPREAD = 0.4
#: Chance that a mutated width is drawn afresh instead.
_FRESH_WIDTH = 0.3
#: Chance of each further edit after the first.
_MORE = 0.5
_MOST_EDITS = 5


def mutate(
    space: Space, settings: SpaceSettings, parents: Candidates, rng: np.random.Generator
) -> Candidates:
    """One child of each parent (N): one to five edits of the kinds that the space allows.

    Edits: the width of one tied set, all widths at once, one layer, one block (a convolution with
    what follows it, or a residual block), one skip.
    """
    draft = _Draft(space, settings, parents, rng)
    edits = draft.edits()
    if not edits:
        return parents
    active = np.arange(len(parents))
    for _ in range(_MOST_EDITS):
        kinds = rng.integers(len(edits), size=len(active))
        for number, edit in enumerate(edits):
            rows = active[kinds == number]
            if len(rows):
                edit(rows)
        active = active[rng.random(len(active)) < _MORE]
        if not len(active):
            break
    return space.resolve(draft.removed, draft.kept, draft.skips)


def cross(space: Space, a: Candidates, b: Candidates, rng: np.random.Generator) -> Candidates:
    """One child of each pair (N): the layers before a random depth from `a`, the others from `b`.

    A tied set of channels belongs to the depth of the first layer that makes them.
    """
    count, depth = len(a), len(space.graph)
    cut = rng.integers(1, depth, size=(count, 1))
    removed = np.where(np.arange(depth) < cut, a.removed, b.removed)
    kept = np.where(space.set_depth[space.tied_set] < cut, a.kept, b.kept)
    skips = a.skips
    if len(space.skips):
        skips = np.where(space.skips[:, 1] < cut, a.skips, b.skips)
    return space.resolve(removed, kept, skips)


def shrink_until(
    space: Space,
    settings: SpaceSettings,
    candidates: Candidates,
    allowed: Callable[[Candidates], np.ndarray],
) -> Candidates:
    """The candidates with all widths cut by a fifth, again and again, until they are `allowed`.

    Those at their least widths lose a fifth of their layers, the last ones first. What is not
    allowed even so is left out. Only moves of the space are used.
    """
    removed, kept = candidates.removed.copy(), candidates.kept.copy()
    rows = np.flatnonzero(~allowed(candidates))
    while len(rows):
        changed = np.zeros(len(rows), dtype=bool)
        if "shrink" in settings.moves:
            share = np.minimum(0.8 * kept[rows], kept[rows] - space.steps) / space.groups.sizes
            smaller = np.minimum(space.kept_at(share), kept[rows])
            changed = (smaller < kept[rows]).any(axis=1)
            kept[rows] = smaller
        if "remove" in settings.moves:
            stuck = rows[~changed]
            there = ~removed[np.ix_(stuck, space.removable)]
            from_the_end = there[:, ::-1].cumsum(axis=1)[:, ::-1]
            going = there & (from_the_end <= np.ceil(0.2 * there.sum(axis=1, keepdims=True)))
            removed[np.ix_(stuck, space.removable)] |= going
            changed[~changed] = going.any(axis=1)
        candidates = space.resolve(removed, kept, candidates.skips)
        rows = rows[changed]
        rows = rows[~allowed(candidates.select(rows))]
    return candidates.select(np.flatnonzero(allowed(candidates)))


class _Draft:
    """Candidates under edit; an edit changes the given rows (n) of the arrays in place."""

    def __init__(
        self, space: Space, settings: SpaceSettings, parents: Candidates, rng: np.random.Generator
    ) -> None:
        self.removed = parents.removed.copy()
        self.kept = parents.kept.copy()
        self.skips = parents.skips.copy()
        self._space = space
        self._settings = settings
        self._rng = rng

    def edits(self) -> list[Callable[[np.ndarray], None]]:
        """What the space allows; likelier ones are listed more often."""
        space, moves = self._space, self._settings.moves
        found: list[Callable[[np.ndarray], None]] = []
        if "shrink" in moves:
            found += [self._width, self._width, self._width, self._widths]
        if "remove" in moves and len(space.removable):
            found += [self._layer, self._layer]
            found += [self._block] if len(space.blocks) else []
        if "skip" in moves and len(space.skips):
            found += [self._skip]
        return found

    def _width(self, rows: np.ndarray) -> None:
        space, rng, sizes = self._space, self._rng, self._space.groups.sizes
        chosen = rng.integers(space.num_tied, size=len(rows))
        first = space.first_of_set[chosen]
        factor = np.exp(rng.normal(0, _WIDTH_SPREAD, len(rows)))
        share = self.kept[rows, first] / sizes[first] * factor
        fresh = rng.random(len(rows)) < _FRESH_WIDTH
        share = np.where(fresh, 1 - self._settings.shrink_limit * rng.random(len(rows)), share)
        ours = space.tied_set[None] == chosen[:, None]
        wanted = space.kept_at(np.tile(share[:, None], len(sizes)))
        self.kept[rows] = np.where(ours, wanted, self.kept[rows])

    def _widths(self, rows: np.ndarray) -> None:
        factor = np.exp(self._rng.normal(0, _WIDTH_SPREAD / 2, (len(rows), 1)))
        share = self.kept[rows] / self._space.groups.sizes * factor
        self.kept[rows] = self._space.kept_at(share)

    def _layer(self, rows: np.ndarray) -> None:
        removable = self._space.removable
        self.removed[rows, removable[self._rng.integers(len(removable), size=len(rows))]] ^= True

    def _block(self, rows: np.ndarray) -> None:
        blocks = self._space.blocks
        member = blocks[self._rng.integers(len(blocks), size=len(rows))]
        removed = self.removed[rows]
        gone = 2 * (removed & member).sum(axis=1) > member.sum(axis=1)
        self.removed[rows] = np.where(gone[:, None], removed & ~member, removed | member)

    def _skip(self, rows: np.ndarray) -> None:
        add = self._rng.random(len(rows)) < 0.5
        # The largest of random numbers among those present (or absent) is a random one of them.
        order = self._rng.random((len(rows), len(self._space.skips)), dtype=np.float32)
        chosen = np.where(self.skips[rows] != add[:, None], order, -1).argmax(axis=1)
        self.skips[rows, chosen] = add
