"""Settings of the surrogate. Defaults are the published ones (Cao et al., ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from esnac.errors import SettingsError


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
        for name in ("hidden", "layers", "chunk"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("length_scale", "noise", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} must be positive; got {getattr(self, name)}.")
        for name in ("steps", "min_steps", "tolerance", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not 0 < self.averaging <= 1:
            raise SettingsError(f"averaging must be in (0, 1]; got {self.averaging}.")


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
    #: Share of the observations that trains a member's weights, and bounds on their number.
    part: float = 0.8
    least_part: int = 24
    most_part: int = 96
    #: Most observations that predictions rest on: the cost grows with the cube.
    most: int = 1000
    #: Graphs embedded at a time.
    chunk: int = 250

    def __post_init__(self) -> None:
        counts = ("members", "hidden", "first_steps", "afresh_every", "most", "chunk")
        for name in (*counts, "least_part", "most_part"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("learning_rate", "scale_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} must be positive; got {getattr(self, name)}.")
        for name in ("next_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not 0 < self.part <= 1:
            raise SettingsError(f"part must be in (0, 1]; got {self.part}.")
