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
from esnac.graphs.network import Preparation, StudentNetwork
from esnac.graphs.space import Space
from esnac.runtime import derive_seed
from esnac.search.trial import Outcome, Trial
from esnac.training import TrainingSettings, accuracy, fit

#: Errors after which a GPU is of no use to this process; they are no fault of the student.
BROKEN_DEVICE: tuple[type[BaseException], ...] = tuple(
    error for error in [getattr(torch, "AcceleratorError", None)] if error is not None
)


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
        """The validation accuracy of the saved student, or why its training failed.

        Faults of the disk or the device are raised: they would fail every later trial as well.
        """
        start = time.perf_counter()
        try:
            network = self._train(trial)
        except BROKEN_DEVICE:
            raise
        except Exception as error:  # one bad student must not end the search
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Outcome(reason=reason, seconds=time.perf_counter() - start)
        folder = self.folder(trial.number)
        students.save(folder, network)
        saved = students.load(folder).to(self.device)
        found = accuracy(saved, self.data.validation, self.data)
        return Outcome(accuracy=found, seconds=time.perf_counter() - start)

    def _train(self, trial: Trial) -> StudentNetwork:
        graph = self.space.apply(trial.moves)
        state = inherit(self.space, graph, trial.moves, self.weights, self.selection)
        network = StudentNetwork(graph, state).to(self.device)
        network.preparation = preparation(self.data)
        fit(
            network,
            self.data,
            self.training,
            loss=make_loss(self.training),
            seed=derive_seed(self.seed, "trial", trial.number),
            augmentation_seed=derive_seed(self.seed, "augmentation"),
            targets=self.targets,
            device=self.device,
        )
        return network


def preparation(data: DataSet) -> Preparation:
    """What a network trained on `data` expects."""
    return Preparation(data.mean, data.std, data.class_names)
