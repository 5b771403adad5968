"""The stage `quantize`: a student with few bits, trained with them or rounded afterwards.

    lsq, dorefa, pact   trained with quantisers of weights and activations of that kind
    qd                  quantised distillation: weights on a grid between the extremes of buckets
    dq                  weights frozen, the points they are rounded to trained by the float student
    post                qd's grid without training; statistics of batch norms gathered anew where
                        that helps on the validation images

Beside the student it leaves `student.packed`, the file to be deployed, which gives the same logits
to the bit.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esnac.distillation.losses import Distillation
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork
from esnac.quantization import methods, packed, store
from esnac.quantization.allocation import gradient_norms, reallocate
from esnac.quantization.attach import Plan, attach, calibrate, is_quantized, verify_fired
from esnac.quantization.methods import plan_of, require_bits
from esnac.quantization.points import PointSettings, freeze_but_points
from esnac.quantization.policy import FLOAT, Policy
from esnac.quantization.post_mortem import post_mortem
from esnac.quantization.recalibration import recalibrate
from esnac.quantization.size import size_report
from esnac.quantization.store import PACKED
from esnac.settings import require, require_used
from esnac.stages import calibration
from esnac.stages._base import CHECKPOINT, StageContext, StageResult
from esnac.stages.measure import deployed_file, measure, save_student, trainable
from esnac.stages.retraining import require_training, retrain, retraining
from esnac.training import TrainingSettings, accuracy, logits

Method = Literal["lsq", "dorefa", "pact", "qd", "dq", "post"]

#: Batches from which gradients are measured (Polino et al. 2018: 5).
GRADIENTS = 5

#: What each method does not look at.
UNUSED: dict[Method, tuple[str, ...]] = {
    "lsq": ("bucket",),
    "dorefa": ("bucket",),
    "pact": ("bucket",),
    "qd": (),
    "dq": ("distillation",),
    "post": ("epochs", "learning_rate", "distillation", "without_teacher"),
}


@dataclass(frozen=True)
class QuantizeSettings:
    """What is None is as in the run's full training."""

    method: Method = "lsq"
    #: Bits of a weight; qd, dq and post also take a fraction: 2.585 bits are 6 levels.
    weights: float = 4
    #: Bits of the inputs of layers; None: they stay float.
    activations: int | None = None
    #: Bits of the first and the last layer, which cost accuracy first; None: they stay float.
    ends: int | None = 8
    #: qd, dq, post: weights that share a scale (Polino et al. 2018: 256).
    bucket: int = 256
    epochs: int | None = None
    #: dq: None is 3e-4, see `quantization.points`.
    learning_rate: float | None = None
    #: Of the teacher; dq learns from the student itself, as it was, by soft targets.
    distillation: Distillation = "soft_targets"
    #: Whether to train a second time, with labels alone, to see what the teacher gives.
    without_teacher: bool = True
    #: Give more of the bits (dq: points) to the weights whose gradients are large, fewer to others;
    #: no more in all (`quantization.allocation`).
    by_gradients: bool = False
    #: Layers or weights with other bits, as in `quantization.policy`: "stages.2.*=2/4".
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "ends"):
            bits = getattr(self, name)
            unset = bits is None and name != "weights"
            require(unset or 1 <= bits <= 8, name, "1 to 8 bits", bits)
        whole = self.weights == int(self.weights)
        fits = whole or self.method in ("qd", "dq", "post")
        require(fits, "weights", f"a whole number of bits with {self.method}", self.weights)
        require(self.bucket >= 1, "bucket", "at least 1", self.bucket)
        require_training(self.epochs, self.learning_rate)
        require_used(self, UNUSED[self.method], f"with method {self.method!r}")
        require_bits(_kind(self.method), self.policy())

    def policy(self) -> Policy:
        """The bits of each layer; raises SettingsError for overrides that do not read."""
        bits = self.weights
        return Policy(
            weights=int(bits) if bits == int(bits) else bits,
            activations=FLOAT if self.activations is None else self.activations,
            ends=FLOAT if self.ends is None else self.ends,
            overrides=self.overrides,
        )


def _kind(method: Method) -> methods.Method:
    """Whose quantisers are taken."""
    return "qd" if method == "post" else method


@dataclass(frozen=True)
class QuantizeStage:
    settings: QuantizeSettings

    quantizes = True
    needs_float = "Quantise once: leave one out, or take the float student it was made from."

    @property
    def name(self) -> str:
        return f"quantize-{self.settings.method}"

    def rehearse(
        self, student: StudentNetwork, training: TrainingSettings
    ) -> list[tuple[str, ...]]:
        """No rows. Raises EsnacError for overrides of layers that are not there."""
        plan_of(student, _kind(self.settings.method), self.settings.policy())
        return []

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        """`details`: a table of test accuracies (float; the same bits by rounding alone, with and
        without statistics gathered anew; without a teacher; this method) and sizes in bytes."""
        start = time.perf_counter()
        work = _Work(self.settings, source, context)
        table = work.without_training()
        student = work.quantized(target / CHECKPOINT / "trained")
        if work.learns_from_a_teacher and self.settings.without_teacher:
            method: Method = "qd" if self.settings.method == "dq" else self.settings.method
            alone = replace(self.settings, method=method, distillation="none")
            labels = _Work(alone, source, context)
            other = labels.quantized(target / CHECKPOINT / "labels", report=False)
            table[f"{alone.method}, labels alone"] = labels.accuracy(other)
        return context.group.from_first(lambda: self._keep(student, work, table, target, start))

    def _keep(
        self,
        student: StudentNetwork,
        work: _Work,
        table: dict[str, float],
        target: Path,
        start: float,
    ) -> StageResult:
        save_student(target, student)
        work.check(target)
        result = measure(self.name, target, work.context, start)
        table[self.settings.method] = result.accuracy
        report = size_report(target / PACKED)
        details = {
            "accuracy": [{"run": run, "accuracy": found} for run, found in table.items()],
            "bytes": {
                "source": deployed_file(work.source).stat().st_size,
                "packed": report.total,
                "header": report.header,
                "tensors": [{**vars(row), "stored": row.stored} for row in report.rows],
            },
        }
        return replace(result, details=details)


@dataclass(frozen=True)
class _Work:
    """One student on its way to few bits."""

    settings: QuantizeSettings
    source: Path
    context: StageContext

    @property
    def learns_from_a_teacher(self) -> bool:
        method = self.settings.method
        return method == "dq" or (method != "post" and self.settings.distillation != "none")

    def load(self) -> StudentNetwork:
        """The student, whose exact zeros are masks."""
        student = trainable(self.source, self.context.device)
        if is_quantized(student):
            raise EsnacError(
                f"The student in {self.source} is quantised already. {QuantizeStage.needs_float}"
            )
        return student

    def accuracy(self, student: nn.Module) -> float:
        return accuracy(student, self.context.data.test, self.context.data)

    def validation(self, student: nn.Module) -> float:
        return accuracy(student, self.context.data.validation, self.context.data)

    def plan(self, student: StudentNetwork, method: Method) -> Plan:
        plan = plan_of(student, _kind(method), self.settings.policy(), self.settings.bucket)
        if not self.settings.by_gradients:
            return plan
        batches = calibration.batches(self.context, "calibration", GRADIENTS)
        norms = gradient_norms(student, list(plan.weights), batches, _cross_entropy)
        return reallocate(plan, student, norms, self.settings.policy().weights)

    def without_training(self) -> dict[str, float]:
        """Accuracies of the student as it is, and rounded."""
        student = self.load()
        rounded = post_mortem(student, self.plan(student, "post"), self.accuracy, self.inputs)
        return {
            "float": self.accuracy(student),
            "rounded": rounded.plain,
            "rounded, recalibrated": rounded.recalibrated,
        }

    def quantized(self, checkpoint: Path, report: bool = True) -> StudentNetwork:
        """The student under its quantisers, trained unless the method is not to train."""
        student, context = self.load(), self.context
        plan = self.plan(student, self.settings.method)
        attach(student, plan)
        if plan.activations:
            calibrate(student, self.inputs)
        # The statistics of the float weights no longer fit; dorefa even changes the scale.
        if self.settings.method == "post":
            self.recalibrate_if_better(student)
        else:
            recalibrate(student, self.inputs)
            if self.settings.method == "dq":
                freeze_but_points(student)
            training = self.training()
            context = replace(
                context,
                targets=self.targets(training),
                on_epoch=context.on_epoch if report else None,
            )
            retrain(student, training, context, checkpoint, "quantize")
        verify_fired(student, self.inputs[0])
        return student

    def recalibrate_if_better(self, student: StudentNetwork) -> None:
        """On the validation images."""
        plain, before = deepcopy(student.state_dict()), self.validation(student)
        if recalibrate(student, self.inputs) and self.validation(student) < before:
            student.load_state_dict(plain)

    def training(self) -> TrainingSettings:
        s = self.settings
        training = retraining(
            self.context.training,
            epochs=s.epochs,
            learning_rate=s.learning_rate,
            distillation=s.distillation,
        )
        if s.method == "dq":
            return replace(
                training,
                optimizer="adam",
                learning_rate=s.learning_rate or PointSettings().learning_rate,
                weight_decay=0.0,
                schedule="cosine",
                milestones=(),
                distillation="soft_targets",
                ask_teacher="always",
                label_weight=0.0,
                distillation_weight=1.0,
            )
        return training

    def targets(self, training: TrainingSettings) -> TeacherTargets:
        """The teacher's or, for trained points, those of the student as it was."""
        context = self.context
        if self.settings.method != "dq":
            return context.targets
        return TeacherTargets(
            self.load(),
            context.data,
            context.targets.seed,
            context.device,
            training.precision,
            group=context.group,
        )

    @cached_property
    def inputs(self) -> list[Tensor]:
        """Training images to gather ranges and statistics from."""
        return [inputs for inputs, _ in calibration.batches(self.context, "calibration")]

    def check(self, target: Path) -> None:
        """Raises EsnacError unless the packed file computes what the student's folder does."""
        # Where codes are made: a GPU may round a scale otherwise.
        data = self.context.data.to("cpu")
        students = store.load(target), packed.read(target / PACKED)
        one, other = (logits(s, data.validation, data) for s in students)
        if not torch.equal(one, other):
            raise EsnacError(f"{target / PACKED} does not compute what the student beside it does.")


def _cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(network(inputs), labels)
