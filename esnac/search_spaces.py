"""Search spaces on disk: one TOML file per network, per family, or `default.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esnac.settings import load_toml, require

MOVES = ("remove", "shrink", "skip")


@dataclass(frozen=True)
class SpaceSettings:
    """Which students can be reached from a teacher, and how candidates are drawn.

    The defaults are the published ones (Cao, Wang, Kitani, ICLR 2019).
    """

    moves: tuple[str, ...] = MOVES
    #: Chance that a layer of equal input and output shape is removed; drawn once per candidate.
    removal_rates: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    #: Chance that a skip connection between matching shapes is added; drawn once per candidate.
    skip_rates: tuple[float, ...] = (0.003, 0.005, 0.01, 0.03, 0.05)
    #: A channel group loses the share r ~ U[0, shrink_limit] of its channels.
    shrink_limit: float = 1.0
    #: "count": groups with equally many channels shrink together; "dependency": each by itself.
    tied_by: Literal["count", "dependency"] = "count"
    #: Kept channels are rounded up to a multiple of this where the group's size allows; an error
    #: where no group's does.
    multiple: int = 1
    #: A group keeps at least this many channels.
    minimum: int = 1
    #: Shell-style patterns of layer names that keep their place and their channels.
    protected: tuple[str, ...] = ()
    #: Which of the teacher's channels a student inherits.
    inherit: Literal["leading", "important"] = "leading"

    def __post_init__(self) -> None:
        known = all(move in MOVES for move in self.moves)
        require(known, "space.moves", f"some of {', '.join(MOVES)}", list(self.moves))
        for name in ("removal_rates", "skip_rates"):
            rates = getattr(self, name)
            chances = bool(rates) and all(0 <= rate <= 1 for rate in rates)
            require(chances, f"space.{name}", "probabilities between 0 and 1", list(rates))
        limit = self.shrink_limit
        require(0 < limit <= 1, "space.shrink_limit", "in (0, 1]", limit)
        for name in ("multiple", "minimum"):
            value = getattr(self, name)
            require(value >= 1, f"space.{name}", "at least 1", value)
        used = self.multiple == 1 or "shrink" in self.moves
        require(used, "space.multiple", "1 where space.moves has no shrink", self.multiple)


def load(folder: Path | None, network: str, family: str) -> dict[str, Any]:
    """Plain settings of a network's space.

    From `<network>.toml`, else `<family>.toml`, else `default.toml`; an empty table (the published
    defaults) when the folder has none of them.
    """
    for name in (network, family, "default"):
        path = folder / f"{name}.toml" if folder and _is_file_name(name) else None
        if path and path.is_file():
            return load_toml(path)
    return {}


def _is_file_name(name: str) -> bool:
    return bool(name) and not set(name) & set("/\\:")
