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
    removed, kept, skips = (array.copy() for array in _arrays(parents))
    edits = _edits(space, settings)
    if not edits:
        return parents
    active = np.arange(len(parents))
    for _ in range(_MOST_EDITS):
        kinds = rng.integers(len(edits), size=len(active))
        for number, edit in enumerate(edits):
            rows = active[kinds == number]
            if len(rows):
                edit(rows, removed, kept, skips, rng)
        active = active[rng.random(len(active)) < _MORE]
        if not len(active):
            break
    return space.resolve(removed, kept, skips)


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


Edit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.random.Generator], None]


def _arrays(candidates: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return candidates.removed, candidates.kept, candidates.skips


def _edits(space: Space, settings: SpaceSettings) -> list[Edit]:
    """In-place edits of `rows` of the three arrays of candidates; likelier ones are listed more."""
    sizes = space.groups.sizes
    blocks = space.blocks

    def width(rows, removed, kept, skips, rng):  # type: ignore[no-untyped-def]
        chosen = rng.integers(space.num_tied, size=len(rows))
        first = space.first_of_set[chosen]
        share = kept[rows, first] / sizes[first] * np.exp(rng.normal(0, _WIDTH_SPREAD, len(rows)))
        fresh = rng.random(len(rows)) < _FRESH_WIDTH
        share = np.where(fresh, 1 - settings.shrink_limit * rng.random(len(rows)), share)
        ours = space.tied_set[None] == chosen[:, None]
        kept[rows] = np.where(ours, space.kept_at(np.tile(share[:, None], len(sizes))), kept[rows])

    def widths(rows, removed, kept, skips, rng):  # type: ignore[no-untyped-def]
        factor = np.exp(rng.normal(0, _WIDTH_SPREAD / 2, (len(rows), 1)))
        kept[rows] = space.kept_at(kept[rows] / sizes * factor)

    def layer(rows, removed, kept, skips, rng):  # type: ignore[no-untyped-def]
        chosen = space.removable[rng.integers(len(space.removable), size=len(rows))]
        removed[rows, chosen] ^= True

    def block(rows, removed, kept, skips, rng):  # type: ignore[no-untyped-def]
        member = blocks[rng.integers(len(blocks), size=len(rows))]
        gone = 2 * (removed[rows] & member).sum(axis=1) > member.sum(axis=1)
        removed[rows] = np.where(gone[:, None], removed[rows] & ~member, removed[rows] | member)

    def skip(rows, removed, kept, skips, rng):  # type: ignore[no-untyped-def]
        add = rng.random(len(rows)) < 0.5
        # The largest of random numbers among those present (or absent) is a random one of them.
        order = rng.random((len(rows), len(space.skips)), dtype=np.float32)
        chosen = np.where(skips[rows] != add[:, None], order, -1).argmax(axis=1)
        skips[rows, chosen] = add

    found: list[Edit] = []
    if "shrink" in settings.moves:
        found += [width, width, width, widths]
    if "remove" in settings.moves and len(space.removable):
        found += [layer, layer]
        found += [block] if len(blocks) else []
    if "skip" in settings.moves and len(space.skips):
        found += [skip]
    return found
