"""All settings of a run in one tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from esnac.data import DataSettings
from esnac.errors import SettingsError
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.settings import SurrogateSettings
from esnac.training import TrainingSettings


@dataclass(frozen=True)
class SearchSettings:
    """The loop of Cao et al. 2019: `steps` times, `batch` kernels propose one student each."""

    engine: Literal["paper"] = "paper"
    steps: int = 20
    batch: int = 8
    #: Random candidates that each kernel scores.
    pool: int = 1000
    #: Chance that an observation belongs to the half on which a kernel is trained.
    bagging: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "pool"):
            if getattr(self, name) < 1:
                raise SettingsError(f"search.{name} is at least 1; got {getattr(self, name)}.")
        if not 0 < self.bagging <= 1:
            raise SettingsError(f"search.bagging lies in (0, 1]; got {self.bagging}.")


@dataclass(frozen=True)
class FinishSettings:
    """Full training of the best students."""

    #: How many of the best students (by f) are trained fully.
    finalists: int = 4
    #: Start from fresh weights instead of those found by the search.
    from_scratch: bool = False
    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=300,
            optimizer="sgd",
            learning_rate=0.01,
            weight_decay=5e-4,
            schedule="step",
            milestones=(100, 200),
        )
    )

    def __post_init__(self) -> None:
        if self.finalists < 1:
            raise SettingsError(f"finish.finalists is at least 1; got {self.finalists}.")


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines a run. Folders and the device are not part of it."""

    network: str
    dataset: str
    seed: int = 127
    preset: str = "paper"
    data: DataSettings = field(default_factory=DataSettings)
    #: How the teacher is trained when there is none; from its recipe unless set.
    teacher: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=200))
    space: SpaceSettings = field(default_factory=SpaceSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)
    #: Training of each candidate: the student imitates the teacher's logits, no labels.
    evaluation: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=10,
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=5e-4,
            schedule="constant",
            distillation="logit_mse",
            label_weight=0.0,
        )
    )
    finish: FinishSettings = field(default_factory=FinishSettings)
