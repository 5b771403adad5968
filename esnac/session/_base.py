"""What the parts of a run work on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from esnac.cluster import Cluster
from esnac.data import DataSet
from esnac.distillation.targets import TeacherTargets
from esnac.preparation import Teacher
from esnac.runs import Run
from esnac.runtime import derive_seed
from esnac.search.settings import RunSettings


@dataclass(frozen=True)
class Session:
    """A run that is open for writing, with its data and teacher on `device`.

    Without a `cluster` all work is done in this process.
    """

    run: Run
    settings: RunSettings
    data: DataSet
    teacher: Teacher
    device: torch.device
    cluster: Cluster | None = None

    @cached_property
    def targets(self) -> TeacherTargets:
        """The teacher's answers, shared by all trials and finalists."""
        seed = derive_seed(self.settings.seed, "augmentation")
        precision = self.settings.evaluation.precision
        return TeacherTargets(self.teacher.module, self.data, seed, self.device, precision)
