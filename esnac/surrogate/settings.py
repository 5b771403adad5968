"""Settings of the surrogate. Defaults are the published ones (Cao et al., ICLR 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esnac.settings import require


@dataclass(frozen=True)
class SurrogateSettings:
    """Size of the embedding, fixed scales of the kernel, and how the embedding is trained."""

    #: Units of the LSTM per direction; an embedding has 2 * hidden numbers.
    hidden: int = 64
    layers: int = 4
    #: l in k = exp(-|h - h'|^2 / (2 l^2)); the published 2 * 0.01 is l = 0.1.
    length_scale: float = 0.1
    #: Variance of the observations around f, added to the diagonal.
    noise: float = 0.05
    #: Most steps of Adam on the leave-one-out objective.
    steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    #: Training stops when moving average and last value of the objective differ by less than this,
    #: in nats per observation; 0 never stops early.
    tolerance: float = 1e-3
    #: Weight of the newest value in the moving average.
    averaging: float = 0.5
    #: Steps before training may stop early.
    min_steps: int = 5
    #: Graphs embedded at a time outside training (memory, not the result, depends on it).
    chunk: int = 250

    def __post_init__(self) -> None:
        _require_ranges(
            self,
            counts=("hidden", "layers", "chunk"),
            positive=("length_scale", "noise", "learning_rate"),
            not_negative=("steps", "min_steps", "tolerance", "weight_decay"),
        )
        require(0 < self.averaging <= 1, "averaging", "in (0, 1]", self.averaging)


@dataclass(frozen=True)
class EnsembleSettings:
    """The model of the default engine, see docs/engine.md."""

    members: int = 4
    #: Units of the LSTM per direction.
    hidden: int = 64
    #: Steps of Adam for fresh members, and for those that go on from the step before.
    first_steps: int = 60
    next_steps: int = 8
    #: Each member starts anew every so many steps of the search, one after the other.
    afresh_every: int = 5
    learning_rate: float = 5e-3
    scale_learning_rate: float = 0.05
    weight_decay: float = 0.0
    #: Share of the observations that trains a member's weights, and the least number of them.
    part: float = 0.8
    least_part: int = 6
    #: Most of them in one step of Adam; with more, every step draws its own (docs/engine.md).
    batch: int = 32
    #: Most observations that predictions rest on: the cost grows with the cube.
    most: int = 1000
    #: Graphs embedded at a time.
    chunk: int = 250

    def __post_init__(self) -> None:
        counts = ("members", "hidden", "first_steps", "afresh_every", "most", "chunk")
        _require_ranges(
            self,
            counts=(*counts, "least_part", "batch"),
            positive=("learning_rate", "scale_learning_rate"),
            not_negative=("next_steps", "weight_decay"),
        )
        require(0 < self.part <= 1, "part", "in (0, 1]", self.part)


def _require_ranges(
    settings: object,
    counts: tuple[str, ...],
    positive: tuple[str, ...],
    not_negative: tuple[str, ...],
) -> None:
    for name in counts:
        value = getattr(settings, name)
        require(value >= 1, name, "at least 1", value)
    for name in positive:
        value = getattr(settings, name)
        require(0 < value < math.inf, name, "positive", value)
    for name in not_negative:
        value = getattr(settings, name)
        require(0 <= value < math.inf, name, "0 or positive", value)
