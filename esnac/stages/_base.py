"""The contract of a final stage: take a student's folder, leave a better student in another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.group import ALONE, Group
from esnac.training import EpochRecord


@dataclass(frozen=True)
class StageContext:
    """What a stage may use. `data` lies on `device`; `index` numbers the finalist.

    With a `group` of several ranks each of them runs the stage; rank 0 alone writes to the target,
    and all get the same result.
    """

    data: DataSet
    targets: TeacherTargets
    device: torch.device
    seed: int
    index: int
    on_epoch: Callable[[EpochRecord], None] | None = None
    group: Group = ALONE


@dataclass(frozen=True)
class StageResult:
    """What a stage left in `path`. Both accuracies are of the files there, loaded again."""

    stage: str
    path: Path
    accuracy: float
    validation_accuracy: float
    params: int
    macs: int
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}


class Stage(Protocol):
    """`run` reads the student in `source` and writes one to `target`; it never changes `source`.

    A stage that is started again after an interruption goes on where it stopped. One that would
    change nothing raises an error that says so.
    """

    @property
    def name(self) -> str: ...

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult: ...
