"""All settings of a run in one tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from esnac.data import DataSettings
from esnac.search_spaces import SpaceSettings
from esnac.settings import require, require_used
from esnac.surrogate.settings import EnsembleSettings, SurrogateSettings
from esnac.training import TrainingSettings

Engine = Literal["esnac", "paper", "features", "evolution", "tpe", "random"]

#: What is computed of a student without training it.
KNOWN_MEASURES = ("params", "macs", "bytes", "latency")


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the search maximises, and limits that every proposal keeps."""

    #: "f": c (2 - c) a, as published; "accuracy": the accuracy alone, for use with limits;
    #: "pareto": the best students for any weighing of `measures`.
    kind: Literal["f", "accuracy", "pareto"] = "f"
    measures: tuple[str, ...] = ("accuracy", "params")
    max_params: int | None = None
    max_macs: int | None = None
    #: Of the weights and running statistics as float32, in bytes, without the file's header.
    max_bytes: int | None = None
    #: Of one image on the device of the search, in milliseconds, as a sum over the layers.
    max_latency: float | None = None

    @property
    def needed(self) -> frozenset[str]:
        """The known measures that limits or a pareto search ask for."""
        names = {name for name in KNOWN_MEASURES if getattr(self, f"max_{name}") is not None}
        if self.kind == "pareto":
            names |= {name for name in self.measures if name in KNOWN_MEASURES}
        return frozenset(names)

    def __post_init__(self) -> None:
        for name in KNOWN_MEASURES:
            limit = getattr(self, f"max_{name}")
            require(limit is None or limit > 0, f"objective.max_{name}", "positive", limit)
        if self.kind == "pareto":
            known = [name for name in self.measures if name in KNOWN_MEASURES]
            good = sorted(self.measures) == sorted({*known, "accuracy"}) and 1 <= len(known) <= 2
            expected = f"accuracy and one or two of {', '.join(KNOWN_MEASURES)}"
            require(good, "objective.measures", expected, ", ".join(self.measures))
        else:
            require_used(self, ("measures",), "without objective.kind = pareto")


@dataclass(frozen=True)
class SearchSettings:
    """The loop: `steps` times `batch` students are proposed by the engine and evaluated."""

    engine: Engine = "esnac"
    steps: int = 20
    batch: int = 8
    #: Candidates that the model scores: for each kernel ("paper"); for each step, before those of
    #: the `rounds`, which add a quarter each ("esnac").
    pool: int = 1000
    #: Chance that an observation belongs to the half on which a kernel is trained ("paper").
    bagging: float = 0.5
    #: Shares of parameters saved between which the first batch is spread ("esnac").
    spread: tuple[float, float] = (0.6, 0.97)
    #: Best observed students that the model looks at again, and how many of them become parents.
    considered: int = 100
    parents: int = 16
    #: Times that the best candidates found are varied again.
    rounds: int = 5
    #: Candidates from which the batch is chosen.
    shortlist: int = 200
    #: "synchronous": a step is proposed when the one before it has ended; "asynchronous": a free
    #: worker gets a student at once; "auto": the latter where there is more than one worker.
    mode: Literal["auto", "synchronous", "asynchronous"] = "auto"
    #: "asha": evaluations that do badly end early (Li et al. 2020); on a cluster only.
    early_stopping: Literal["none", "asha"] = "none"
    #: How often an evaluation is tried again whose worker was lost.
    retries: int = 2
    #: Students alive and contestants of a tournament ("evolution").
    population: int = 40
    tournament: int = 10

    def __post_init__(self) -> None:
        least = {"pool": 4, "rounds": 0, "retries": 0}
        for name in (*("steps", "batch", "pool", "considered", "parents", "rounds"),
                     *("shortlist", "population", "tournament", "retries")):  # fmt: skip
            value, bound = getattr(self, name), least.get(name, 1)
            require(value >= bound, f"search.{name}", f"at least {bound}", value)
        rising = 0 <= self.spread[0] < self.spread[1] <= 1
        require(rising, "search.spread", "two rising shares in [0, 1]", self.spread)
        require(0 < self.bagging <= 1, "search.bagging", "in (0, 1]", self.bagging)
        if self.engine in ("esnac", "features"):
            for name in ("pool", "shortlist"):
                value, enough = getattr(self, name), f"at least search.batch ({self.batch})"
                require(value >= self.batch, f"search.{name}", enough, value)


@dataclass(frozen=True)
class FinishSettings:
    """Full training of the best students."""

    #: How many of the best students (by f) are trained fully.
    finalists: int = 4
    #: Start from fresh weights instead of those found by the search.
    from_scratch: bool = False
    #: Workers of a cluster, each with its device, that train one finalist together: each takes its
    #: part of every batch, so batch size and schedule stay what they are.
    workers: int = 1
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
        require(self.finalists >= 1, "finish.finalists", "at least 1", self.finalists)
        require(self.workers >= 1, "finish.workers", "at least 1", self.workers)


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines a run. Folders and the device are not part of it."""

    network: str
    dataset: str
    seed: int = 127
    preset: str = "full"
    data: DataSettings = field(default_factory=DataSettings)
    #: How the teacher is trained when there is none; from its recipe unless set.
    teacher: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=200))
    space: SpaceSettings = field(default_factory=SpaceSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    #: The kernels of the engine "paper".
    surrogate: SurrogateSettings = field(default_factory=SurrogateSettings)
    #: The ensemble of the engine "esnac".
    model: EnsembleSettings = field(default_factory=EnsembleSettings)
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
    #: What the finalists go through after full training: tables with `stage`, `method` and that
    #: stage's own settings.
    stages: tuple[dict[str, Any], ...] = ()
