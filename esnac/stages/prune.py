"""The stage `prune`: single weights become zero and stay so.

    agp         gradually, the sparsity rising to the third power (Zhu and Gupta 2017)
    magnitude   the smallest at once
    nm          of each m inputs the n largest stay, as sparse tensor cores want it

The student is trained on meanwhile; with `train` false the final masks are put on as it is. Its
zeros are masks to the stages that follow. A quantised student is pruned by its masters and stays
quantised.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from esnac.distillation.losses import Distillation
from esnac.errors import EsnacError, SettingsError
from esnac.pruning.gradual import UNUSED, Gradual, Pruner
from esnac.pruning.layers import prunable
from esnac.pruning.schedule import HEADER, Schedule, firings, row, targets
from esnac.settings import require, require_used
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import load_student, measure, save_student, trainable
from esnac.stages.retraining import require_training, retrain, retraining
from esnac.training import Hooks, TrainingSettings, accuracy

#: What a stage that does not train does not look at.
TRAINING_ONLY = ("initial", "start", "end", "frequency", "epochs", "learning_rate", "distillation")
#: Epochs of a training whose length is not known yet, or does not matter.
UNKNOWN = 10**6
#: Share of the epochs in which the sparsity rises; the others make good (8 of 12 on digits).
RISE = 2 / 3


@dataclass(frozen=True)
class PruneSettings:
    """What is None is as in the run's full training."""

    method: Literal["agp", "magnitude", "nm"] = "agp"
    sparsity: float = 0.8
    #: Patterns of layers or weights, as in `esnac.pruning.layers`.
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    #: Layers with a sparsity of their own: "conv1=0.3".
    overrides: tuple[str, ...] = ()
    initial: float = 0.05
    start: int = 0
    #: First epoch after the window; None: two thirds of the epochs.
    end: int | None = None
    frequency: int = 1
    n: int = 2
    m: int = 4
    #: False: the final masks at once, no training.
    train: bool = True
    epochs: int | None = None
    learning_rate: float | None = None
    distillation: Distillation = "soft_targets"

    def __post_init__(self) -> None:
        require_training(self.epochs, self.learning_rate)
        unused = UNUSED[self.method] + (("overrides",) if self.method == "nm" else ())
        require_used(self, unused, f"with method {self.method!r}")
        if not self.train:
            require_used(self, TRAINING_ONLY, "without training")
        self.pruners(self.epochs or UNKNOWN)

    def pruners(self, epochs: int) -> tuple[Pruner, ...]:
        """The pruners of a training of so many epochs. Raises SettingsError if they do not fit."""
        epochs = epochs if self.train else UNKNOWN
        own: dict[str, float] = {}
        for pattern, sparsity in map(_parse, self.overrides):
            if pattern in own:
                raise SettingsError(f"overrides: layer {pattern!r} is named twice.")
            own[pattern] = sparsity
        end = Pruner.end if self.end is None else self.end
        if self.end is None and self.method == "agp":
            least = self.start + self.frequency + 1
            require(epochs >= least, "epochs", f"at least {least}, to prune gradually", epochs)
            end = max(least, round(epochs * RISE))
        rest = Pruner(
            self.method, self.layers, (*self.exclude, *own), self.sparsity, self.initial,
            self.start, end, self.frequency, self.n, self.m,
        )  # fmt: skip
        rest.window.check_fits(epochs, f"prune-{self.method}")
        special = (replace(rest, layers=(k,), exclude=(), sparsity=s) for k, s in own.items())
        return (rest, *special)


@dataclass(frozen=True)
class PruneStage:
    settings: PruneSettings

    @property
    def name(self) -> str:
        return f"prune-{self.settings.method}"

    def rehearse(self, student: nn.Module, training: TrainingSettings) -> list[tuple[str, ...]]:
        """What fires when. Raises SettingsError for what does not fit."""
        epochs = training.epochs if self.settings.epochs is None else self.settings.epochs
        pruners = self.settings.pruners(epochs)
        Gradual(student, pruners)
        if self.settings.train:
            return firings(student, Schedule(epochs, pruners))
        rows = (
            row("at once", f"prune {p.method}", f"{p.final:.4f}", targets(student, p))
            for p in pruners
        )
        return [HEADER, *rows]

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        """`details`: test accuracies (dense; the same masks without training; this student), and
        for each pruned weight its number of values and of zeros."""
        start = time.perf_counter()
        training = self._training(context)
        pruners = self.settings.pruners(training.epochs)
        dense = trainable(source, context.device)
        table, before = {"dense": on_test(dense, context)}, zeros(dense)
        student = trainable(source, context.device)
        Gradual(student, pruners).apply()
        table["without training"] = on_test(student, context)
        if self.settings.train:
            student = trainable(source, context.device)
            gradual = Gradual(student, pruners)
            hooks = Hooks(gradual.before_epoch, settled=gradual.settled, about=repr(pruners))
            retrain(student, training, context, target / CHECKPOINT, "prune", hooks=hooks)
        if zeros(student) == before:
            raise EsnacError(
                f"Nothing was pruned: the student in {source} is that sparse already. Ask for "
                "more sparsity, or leave this stage out."
            )

        def keep() -> StageResult:
            save_student(target, student)
            result = measure(self.name, target, context, start)
            if self.settings.train:
                table[self.settings.method] = result.accuracy
            return replace(result, details=details(table, load_student(target)))

        return context.group.from_first(keep)

    def _training(self, context: StageContext) -> TrainingSettings:
        s = self.settings
        return retraining(
            context.training,
            epochs=s.epochs,
            learning_rate=s.learning_rate,
            distillation=s.distillation,
        )


def on_test(student: nn.Module, context: StageContext) -> float:
    return accuracy(student, context.data.test, context.data)


def zeros(student: nn.Module) -> dict[str, int]:
    """The number of zeros in each weight, by name."""
    return {name: int((weight == 0).sum()) for name, weight in prunable(student).items()}


def details(table: dict[str, float], student: nn.Module) -> dict[str, Any]:
    """Accuracies and sparsities as plain data."""
    sizes = {name: weight.numel() for name, weight in prunable(student).items()}
    gone = zeros(student)
    return {
        "accuracy": [{"run": run, "accuracy": found} for run, found in table.items()],
        "sparsity": sum(gone.values()) / sum(sizes.values()),
        "weights": [
            {"weight": name, "values": size, "zeros": gone[name]} for name, size in sizes.items()
        ],
    }


def _parse(rule: str) -> tuple[str, float]:
    pattern, _, value = rule.rpartition("=")
    try:
        sparsity = float(value)
    except ValueError:
        sparsity = -1.0
    require(bool(pattern) and 0 <= sparsity < 1, "overrides", "NAME=SPARSITY, in [0, 1)", rule)
    return pattern.strip(), sparsity
