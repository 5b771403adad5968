"""The contract of a stage: take a student's folder, leave another student in another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.group import ALONE, Group
from esnac.training import EpochRecord, TrainingSettings

#: Folder in a stage's target from which it goes on after an interruption. Whoever records the
#: result removes it (`clean`), so that nothing is done twice.
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class StageContext:
    """What a stage may use. `data` lies on `device`; `index` numbers the finalist.

    `training` is the run's full training, of which a stage may change what its settings name;
    `teacher_accuracy` is on the test split. With a `group` of several ranks each of them runs the
    stage; rank 0 alone writes to the target, and all get the same result.
    """

    data: DataSet
    targets: TeacherTargets
    device: torch.device
    seed: int
    index: int
    training: TrainingSettings
    teacher_accuracy: float
    on_epoch: Callable[[EpochRecord], None] | None = None
    group: Group = ALONE


@dataclass(frozen=True)
class StageResult:
    """What a stage left in `path`. Both accuracies are of the files there, loaded again.

    `bytes` is the size of the file that would be deployed. `details` holds further figures and
    tables as plain JSON.
    """

    stage: str
    path: Path
    accuracy: float
    validation_accuracy: float
    params: int
    macs: int
    seconds: float
    bytes: int
    details: dict[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}


class Stage(Protocol):
    """`run` reads the student in `source` and writes one to `target`; it never changes `source`.

    A stage that is started again after an interruption goes on where it stopped, from
    `target / CHECKPOINT`. One that would change nothing raises an EsnacError that says so.

    A stage may have a method `rehearse(student, training)`, with the run's full training and a
    student of its own: it raises for what does not fit and returns rows of text, the first one the
    header, of what fires when; none where nothing depends on the epoch.

    It may have attributes `quantizes`, true where its student is quantised, and `needs_float`: what
    to do about it where it cannot take one that is, in a sentence.
    """

    @property
    def name(self) -> str: ...

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult: ...


def clean(target: Path) -> None:
    """Removes what a stage needed only to go on after an interruption."""
    shutil.rmtree(target / CHECKPOINT, ignore_errors=True)
