"""Weights by the patterns of a user: `conv1`, `stages.0.*`, `fc.weight`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from esnac.errors import SettingsError
from esnac.graphs.masks import effective_weights
from esnac.graphs.network import sources

#: How many near matches an error names.
NEAR = 3


def prunable(network: nn.Module) -> dict[str, Tensor]:
    """The weights of two and more dimensions by name, as the network uses them; detached."""
    return {name: w for name, w in effective_weights(network).items() if w.dim() >= 2}


def aliases(network: nn.Module, weights: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each weight may be called: its name, its layer's, and its layer's in the traced network.

    The layer of `conv1.weight` is `conv1`.
    """
    traced, found = sources(network), {}
    for name in weights:
        layer = name.rpartition(".")[0]
        source = traced.get(layer)
        found[name] = (name, layer, *([source] if source else []))
    return found


def matching(
    known: Mapping[str, Sequence[str]], patterns: Sequence[str], exclude: Sequence[str] = ()
) -> list[str]:
    """The keys of `known` (see `aliases`) that one of the shell-style patterns names, in order.

    Raises SettingsError for a pattern without a match (listing near ones), for one that is given
    twice, and when nothing is left.
    """
    for given in (patterns, exclude):
        twice = sorted({pattern for pattern in given if list(given).count(pattern) > 1})
        if twice:
            raise SettingsError(f"Layer {twice[0]!r} is named twice.")
    wanted = {name for pattern in patterns for name in _hits(known, pattern)}
    spared = {name for pattern in exclude for name in _hits(known, pattern)}
    found = [name for name in known if name in wanted - spared]
    if not found:
        raise SettingsError(
            f"No layer is left: layers = {list(patterns)}, exclude = {list(exclude)}."
        )
    return found


def _hits(known: Mapping[str, Sequence[str]], pattern: str) -> list[str]:
    hits = [name for name, called in known.items() if any(fnmatchcase(c, pattern) for c in called)]
    if not hits:
        raise SettingsError(f"Layer {pattern!r} matches nothing.{_near(known, pattern)}")
    return hits


def _near(known: Mapping[str, Sequence[str]], pattern: str) -> str:
    names = list(dict.fromkeys(call for called in known.values() for call in called[1:]))
    near = difflib.get_close_matches(pattern, names, n=NEAR, cutoff=0.4)
    if near:
        return f" Near: {', '.join(near)}."
    return f" Known: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
