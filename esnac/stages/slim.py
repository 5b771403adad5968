"""The stage `slim`: whole channels go, by one threshold over all layers.

    scales      network slimming: trained with a penalty on the scales of norms (Liu et al. 2017)
    l1, l2      by the norm of the weights that make a channel
    taylor      by the change of the loss without it, to first order
    random      by chance: what the others have to beat

Then the smaller network is fine-tuned, with the teacher's help where the settings say so. In
several iterations each takes an equal share of what is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from esnac.data.batches import batch_sizes
from esnac.distillation.losses import Distillation
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.cost import cost
from esnac.graphs.groups import makes_channels
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Space
from esnac.pruning import importance
from esnac.pruning.importance import Importance
from esnac.pruning.layers import aliases, matching
from esnac.pruning.removal import removable, remove
from esnac.pruning.slimming import (
    NEAR_ZERO,
    choose,
    norm_scales,
    penalty,
    require_alive,
    saved_by_minimum,
    strength_for,
)
from esnac.quantization.attach import is_quantized
from esnac.runtime import torch_generator
from esnac.settings import require, require_used
from esnac.stages import calibration
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import measure, save_student, trainable
from esnac.stages.prune import on_test
from esnac.stages.retraining import retrain, retraining
from esnac.training import Hooks, TrainingSettings
from esnac.training.schedules import learning_rate


@dataclass(frozen=True)
class SlimSettings:
    """What is None is as in the run's full training."""

    method: Importance = "scales"
    #: Share of the channels that go, of those that can.
    sparsity: float = 0.5
    iterations: int = 1
    #: Channels that each layer keeps at least.
    minimum: int = 1
    #: Layers whose channels may go, as in `esnac.pruning.layers`.
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    #: Of the penalty; None: by the rule of `slimming.strength_for`. "scales" only, as the next two.
    strength: float | None = None
    sparse_epochs: int | None = None
    sparse_learning_rate: float | None = None
    #: False: the network is left as it was cut.
    finetune: bool = True
    epochs: int | None = None
    learning_rate: float | None = None
    distillation: Distillation = "soft_targets"

    def __post_init__(self) -> None:
        require(0 < self.sparsity < 1, "sparsity", "in (0, 1)", self.sparsity)
        for name in ("iterations", "minimum", "epochs", "sparse_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "at least 1", value)
        for name in ("strength", "learning_rate", "sparse_learning_rate"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "greater than 0", value)
        for name in ("strength", "sparse_epochs", "sparse_learning_rate"):
            if getattr(self, name) is not None and self.method != "scales":
                raise SettingsError(f"{name} belongs to method 'scales', not to {self.method!r}.")
        if not self.finetune:
            require_used(self, ("epochs", "learning_rate"), "without fine-tuning")
            if self.method != "scales":
                require_used(self, ("distillation",), "without training")

    @property
    def share(self) -> float:
        """Of the channels that are left, what one iteration takes."""
        return float(1 - (1 - self.sparsity) ** (1 / self.iterations))


@dataclass(frozen=True)
class SlimStage:
    settings: SlimSettings

    needs_float = "Its channels share scales: slim the float student and quantise it then."

    @property
    def name(self) -> str:
        return f"slim-{self.settings.method}"

    def rehearse(
        self, student: StudentNetwork, training: TrainingSettings
    ) -> list[tuple[str, ...]]:
        """No rows. Raises SettingsError for layers that are not there, and without norms."""
        _space(student, self.settings)
        if self.settings.method == "scales":
            norm_scales(student)
        return []

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        """`details`: test accuracies and parameters after each step (cut by this importance and,
        to compare, by the others), the strength used, channels of each layer before and after."""
        start = time.perf_counter()
        student = trainable(source, context.device)
        if is_quantized(student):
            raise EsnacError(f"The student in {source} is quantised already. {self.needs_float}")
        widths = _widths(student)
        work = _Work(self.settings, context, target / CHECKPOINT)
        work.note("dense", student)
        for iteration in range(1, self.settings.iterations + 1):
            student = work.iterate(student, iteration)
        after = _widths(student)
        details = {
            "accuracy": work.rows,
            "penalties": work.penalties,
            "channels": [
                {"layer": name, "before": before, "after": after[name]}
                for name, before in widths.items()
            ],
        }

        def keep() -> StageResult:
            save_student(target, student)
            return measure(self.name, target, context, start, details)

        return context.group.from_first(keep)


@dataclass
class _Work:
    """One student on its way to fewer channels, and what is told about it."""

    settings: SlimSettings
    context: StageContext
    checkpoint: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    penalties: list[dict[str, float]] = field(default_factory=list)

    def note(self, run: str, student: StudentNetwork) -> None:
        accuracy, params = on_test(student, self.context), cost(student.graph).params
        self.rows.append({"run": run, "accuracy": accuracy, "params": params})

    def iterate(self, student: StudentNetwork, iteration: int) -> StudentNetwork:
        s = self.settings
        place = f"{iteration}: " if s.iterations > 1 else ""
        if s.method == "scales":
            self.sparse(student, iteration)
            self.note(f"{place}trained with the penalty", student)
        student = self.cut(student, place)
        if s.finetune:
            training = retraining(
                self.context.training,
                epochs=s.epochs,
                learning_rate=s.learning_rate,
                distillation=s.distillation,
            )
            folder = self.checkpoint / f"{iteration}-finetune"
            retrain(student, training, self.context, folder, "slim", iteration)
            self.note(f"{place}fine-tuned", student)
        return student

    def sparse(self, student: StudentNetwork, iteration: int) -> None:
        """Trains with the penalty; the last weights are kept, whose scales have gone farthest."""
        s = self.settings
        scales = list(norm_scales(student).values())
        training = retraining(
            self.context.training,
            epochs=s.sparse_epochs,
            learning_rate=s.sparse_learning_rate,
            distillation=s.distillation,
        )
        training = replace(training, select="last")
        strength = s.strength or self._strength(training)
        value = penalty(scales, strength)
        hooks = Hooks(penalty=lambda _: value(), about=f"scales {strength}")
        folder = self.checkpoint / f"{iteration}-sparse"
        retrain(student, training, self.context, folder, "sparse", iteration, hooks=hooks)
        require_alive(scales, strength)
        near = torch.cat([scale.detach().abs() for scale in scales]) < NEAR_ZERO
        self.penalties.append({"strength": strength, "near_zero": near.float().mean().item()})

    def _strength(self, training: TrainingSettings) -> float:
        if training.optimizer != "sgd":
            raise SettingsError(
                "The strength of the penalty follows from the steps of SGD; with "
                f"{training.optimizer} give it: slim(scales, strength=0.001)."
            )
        steps = len(batch_sizes(len(self.context.data.train), training.batch_size))
        rates = (learning_rate(training, i, steps) for i in range(steps * training.epochs))
        return strength_for(rates, training.momentum)

    def cut(self, student: StudentNetwork, place: str) -> StudentNetwork:
        """Without the least important channels; tells what the other importances would give."""
        s = self.settings
        space = _space(student, s)
        free = removable(space, by_scales=s.method == "scales")
        found = student
        for kind, scores in self._scores(student, space):
            try:
                chosen = choose(space, scores, s.share, free, s.minimum)
            except SettingsError:  # of one to compare with: there is nothing to tell
                if kind == s.method:
                    raise
                continue
            small = remove(student, space, chosen).to(self.context.device)
            self.note(f"{place}cut by {kind}", small)
            if kind == s.method:
                found = small
                self.rows[-1]["layers_saved_by_minimum"] = len(
                    saved_by_minimum(space, scores, s.share, free)
                )
        return found

    def _scores(
        self, student: StudentNetwork, space: Space
    ) -> Iterator[tuple[Importance, np.ndarray]]:
        groups = space.groups
        if self.settings.method == "scales":
            yield "scales", importance.by_scales(student, groups)
        yield "l1", importance.by_weights(student, groups, 1)
        yield "l2", importance.by_weights(student, groups, 2)
        batches = calibration.batches(self.context, "taylor")
        yield "taylor", importance.by_taylor(student, groups, batches, cross_entropy)
        generator = torch_generator(self.context.seed, "random channels", self.context.index)
        yield "random", importance.at_random(groups, generator)


def _space(student: StudentNetwork, settings: SlimSettings) -> Space:
    makers = [f"{x.name}.weight" for x in student.graph.layers if makes_channels(x)]
    chosen = matching(aliases(student, makers), settings.layers, settings.exclude)
    held = [name.rpartition(".")[0] for name in makers if name not in chosen]
    return Space(student.graph, tie="dependency", protected=held)


def _widths(student: StudentNetwork) -> dict[str, int]:
    layers = student.graph.layers
    return {layer.name: layer.out_shape[0] for layer in layers if makes_channels(layer)}
