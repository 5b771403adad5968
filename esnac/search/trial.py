"""A proposal and what became of it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from esnac.graphs.moves import Moves

State = Literal["PROPOSED", "DONE", "FAILED"]


@dataclass(frozen=True)
class Trial:
    """One proposed student. `ratio` is the share of the teacher's parameters that it saves."""

    number: int
    step: int
    moves: Moves
    params: int
    macs: int
    ratio: float

    def to_plain(self) -> dict[str, Any]:
        return {
            "trial": self.number,
            "step": self.step,
            "moves": self.moves.to_plain(),
            "params": self.params,
            "macs": self.macs,
            "ratio": self.ratio,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Trial:
        return cls(
            number=plain["trial"],
            step=plain["step"],
            moves=Moves.from_plain(plain["moves"]),
            params=plain["params"],
            macs=plain["macs"],
            ratio=plain["ratio"],
        )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found: the validation accuracy (fraction), or why it failed."""

    accuracy: float | None = None
    reason: str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.reason is None):
            raise ValueError("An outcome has either an accuracy or a reason of failure.")

    @property
    def state(self) -> State:
        return "FAILED" if self.accuracy is None else "DONE"
