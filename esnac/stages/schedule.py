"""The stage `schedule`: one training in which a file says what acts when.

The file (`esnac.pruning.schedule`) names pruners, quantisers, regularisers and changes of the
learning rate, each with its layers and epochs. It is read once: the settings hold what it says, and
so does a file beside the student.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from esnac import files
from esnac.distillation.losses import Distillation
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.network import StudentNetwork
from esnac.pruning import schedule as schedules
from esnac.pruning.gradual import Gradual, masked_master
from esnac.pruning.schedule import QuantizerEntry, Schedule
from esnac.quantization.attach import Plan, activation_quantizers, attach, weight_quantizers
from esnac.quantization.methods import plan_of, require_bits
from esnac.quantization.policy import FLOAT, Policy
from esnac.settings import require, require_used
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import load_student, measure, save_student, trainable
from esnac.stages.prune import details, on_test, zeros
from esnac.stages.retraining import require_training, retrain, retraining
from esnac.training import Hooks, TrainingSettings

#: The schedule in the folder of the student that was trained by it, with all its settings.
KEPT = "schedule.toml"


@dataclass(frozen=True)
class ScheduleSettings:
    """What is None is as in the run's full training; the file says how many epochs."""

    method: Literal["file"] = "file"
    #: The file; empty once it is read, so that settings are equal if their plans are.
    path: str = ""
    #: What it says.
    plan: Schedule | None = None
    learning_rate: float | None = None
    distillation: Distillation = "soft_targets"

    def __post_init__(self) -> None:
        require_training(None, self.learning_rate)
        plan = self.plan
        if plan is None:
            expected = "a TOML file: schedule(file, path=plan.toml)"
            require(bool(self.path), "path", expected, "nothing")
            plan = schedules.load(Path(self.path))
            object.__setattr__(self, "plan", plan)
            object.__setattr__(self, "path", "")
        require_used(self, ("path",), "beside a plan")
        for entry in plan.quantizers:
            require_bits(entry.method, _policy(entry))


@dataclass(frozen=True)
class ScheduleStage:
    settings: ScheduleSettings

    @property
    def name(self) -> str:
        return f"schedule-{self.settings.method}"

    @property
    def quantizes(self) -> bool:
        return bool(self.schedule.quantizers)

    @property
    def schedule(self) -> Schedule:
        assert self.settings.plan is not None
        return self.settings.plan

    def rehearse(
        self, student: StudentNetwork, training: TrainingSettings
    ) -> list[tuple[str, ...]]:
        """What fires when. Raises SettingsError for what does not fit."""
        rows = schedules.firings(student, self.schedule)
        _Acting(student, self.schedule)
        return rows

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        """`details`: test accuracies before and after, zeros of each weight, what fired when."""
        start = time.perf_counter()
        schedule = self.schedule
        student = trainable(source, context.device)
        table, zeros_before = {"before": on_test(student, context)}, zeros(student)
        fired = schedules.firings(student, schedule)
        value = schedules.penalty(student, schedule)
        acting = _Acting(student, schedule)
        training = retraining(
            context.training,
            epochs=schedule.epochs,
            learning_rate=self.settings.learning_rate,
            distillation=self.settings.distillation,
        )
        hooks = Hooks(
            acting.before_epoch,
            value,
            schedule.rate,
            settled=schedule.settled,
            about=repr(schedule),
        )
        retrain(student, training, context, target / CHECKPOINT, "schedule", hooks=hooks)
        if schedule.pruners and zeros(student) == zeros_before:
            raise EsnacError(
                f"The schedule prunes nothing: the student in {source} is that sparse already. "
                "Ask for more sparsity, or leave the pruners out."
            )

        def keep() -> StageResult:
            save_student(target, student)
            files.write_text(target / KEPT, schedules.to_toml(schedule))
            result = measure(self.name, target, context, start)
            table["after"] = result.accuracy
            about: dict[str, Any] = details(table, load_student(target))
            head, *rows = fired
            about["fired"] = [dict(zip(head, row, strict=True)) for row in rows]
            return replace(result, details=about)

        return context.group.from_first(keep)


class _Acting:
    """What changes the student from epoch to epoch."""

    def __init__(self, student: StudentNetwork, schedule: Schedule) -> None:
        self.student = student
        self.gradual = Gradual(student, schedule.pruners) if schedule.pruners else None
        self.quantized = [(entry, _attach(student, entry)) for entry in schedule.quantizers]

    def before_epoch(self, epoch: int) -> None:
        if self.gradual is not None:
            self.gradual.before_epoch(epoch)
        weights = weight_quantizers(self.student)
        inputs = activation_quantizers(self.student)
        for entry, plan in self.quantized:
            for quantizer in (*map(weights.get, plan.weights), *map(inputs.get, plan.activations)):
                assert quantizer is not None
                quantizer.enabled = entry.acts(epoch)
                # Several workers wait for the gradients of all that is trained.
                quantizer.requires_grad_(quantizer.enabled)
            # What was made of the weights of earlier epochs is stale.
            if entry.acts(epoch) and (epoch == 0 or not entry.acts(epoch - 1)):
                for name, settings in plan.weights.items():
                    fresh = settings.build(masked_master(self.student, name))
                    weights[name].load_state_dict(fresh.state_dict())


def _attach(student: StudentNetwork, entry: QuantizerEntry) -> Plan:
    """Puts the quantisers of an entry on the student, its end layers included."""
    whole = plan_of(student, entry.method, _policy(entry))
    names = schedules.targets(student, entry)
    if left := [name for name in names if name not in whole.weights]:
        raise SettingsError(f"{left[0]} cannot be quantised. Leave it out with exclude.")
    layers = {name.rpartition(".")[0] for name in names}
    plan = Plan(
        {name: whole.weights[name] for name in names},
        {path: settings for path, settings in whole.activations.items() if path in layers},
    )
    attach(student, plan)
    return plan


def _policy(entry: QuantizerEntry) -> Policy:
    inputs = FLOAT if entry.activations is None else entry.activations
    return Policy(entry.weights, inputs, overrides=(f"*={entry.weights}/{inputs}",))
