"""Evaluation of a trial: build the student, let it imitate the teacher for some epochs, save it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esnac.data import DataSet
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.graphs import student as students
from esnac.graphs.inherit import Selection, inherit
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Space
from esnac.runtime import derive_seed
from esnac.search.trial import Outcome, Trial
from esnac.training import TrainingSettings, fit


@dataclass(frozen=True)
class Evaluator:
    """Trains trials on one device; everything that all trials share is held here once.

    `weights` is the teacher's state by layer name, on the CPU; `data` lies on `device`; `folder`
    gives the place of a trial's student.
    """

    space: Space
    weights: Mapping[str, Tensor]
    data: DataSet
    targets: TeacherTargets
    training: TrainingSettings
    selection: Selection
    seed: int
    device: torch.device
    folder: Callable[[int], Path]

    def __call__(self, trial: Trial) -> Outcome:
        """The validation accuracy of the trained student; whatever goes wrong is a failure."""
        start = time.perf_counter()
        try:
            accuracy = self._train(trial)
        except Exception as error:  # one bad student must not end the search
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(reason=reason, seconds=time.perf_counter() - start)
        return Outcome(accuracy=accuracy, seconds=time.perf_counter() - start)

    def _train(self, trial: Trial) -> float:
        graph = self.space.apply(trial.moves)
        state = inherit(self.space, graph, trial.moves, self.weights, self.selection)
        network = StudentNetwork(graph, state).to(self.device)
        result = fit(
            network,
            self.data,
            self.training,
            loss=make_loss(self.training),
            seed=derive_seed(self.seed, "trial", trial.number),
            augmentation_seed=derive_seed(self.seed, "augmentation"),
            targets=self.targets,
            device=self.device,
        )
        students.save(self.folder(trial.number), network)
        return result.accuracy
