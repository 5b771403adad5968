"""Moves from a teacher's graph to a student's: layers removed, channels shrunk, skips added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esnac.errors import EsnacError


@dataclass(frozen=True)
class Moves:
    """A student as plain data relative to its teacher's graph.

    `removed`: numbers of the layers that become an identity, ascending.
    `kept`: channels kept in each channel group, in the order of `ChannelGroups`.
    `skips`: added edges (from, to) of layer numbers, ascending.
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    skips: tuple[tuple[int, int], ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "removed": list(self.removed),
            "kept": list(self.kept),
            "skips": [list(edge) for edge in self.skips],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Moves:
        """Raises EsnacError when `plain` does not describe moves."""
        try:
            return cls(
                tuple(int(i) for i in plain["removed"]),
                tuple(int(k) for k in plain["kept"]),
                tuple((int(i), int(j)) for i, j in plain["skips"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EsnacError(f"Not a description of moves ({error!r}): {plain!r}.") from None
