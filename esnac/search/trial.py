"""A proposal and what became of it, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from esnac.graphs.moves import Moves

State = Literal["PROPOSED", "DONE", "FAILED"]


@dataclass(frozen=True)
class Expectation:
    """An accuracy (fraction) that a model expects to be measured, with its 90 % interval."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """One proposed student. `ratio` is the share of the teacher's parameters that it saves.

    `expected`: the accuracy that the engine's model expects, with its central 90 % interval (low,
    high), or None from engines without a model of it.
    """

    number: int
    step: int
    moves: Moves
    params: int
    macs: int
    ratio: float
    expected: Expectation | None = None

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "trial": self.number,
            "step": self.step,
            "moves": self.moves.to_plain(),
            "params": self.params,
            "macs": self.macs,
            "ratio": self.ratio,
        }
        if self.expected is not None:
            plain["expected"] = asdict(self.expected)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Trial:
        return cls(
            number=plain["trial"],
            step=plain["step"],
            moves=Moves.from_plain(plain["moves"]),
            params=plain["params"],
            macs=plain["macs"],
            ratio=plain["ratio"],
            expected=Expectation(**plain["expected"]) if plain.get("expected") else None,
        )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found: the validation accuracy (fraction), or why it failed.

    `stopped_after` counts the epochs of one that was given up early; it left no student. `curve`
    has the validation accuracy after each epoch where early stopping is possible.
    """

    accuracy: float | None = None
    reason: str | None = None
    seconds: float = 0.0
    stopped_after: int | None = None
    curve: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.reason is None):
            raise ValueError("An outcome has either an accuracy or a reason of failure.")

    @property
    def state(self) -> State:
        return "FAILED" if self.accuracy is None else "DONE"
