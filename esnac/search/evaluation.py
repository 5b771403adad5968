"""Evaluation of a trial: build the student, let it imitate the teacher for some epochs, save it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from esnac.data import DataSet
from esnac.distillation.losses import make_loss
from esnac.graphs import student as students
from esnac.graphs.inherit import Selection, inherit
from esnac.graphs.network import Preparation, StudentNetwork
from esnac.graphs.space import Space
from esnac.runtime import derive_seed
from esnac.search.trial import Outcome, Trial
from esnac.training import Targets, Training, TrainingSettings, accuracy

#: Errors after which a GPU is of no use to this process; they are no fault of the student.
BROKEN_DEVICE: tuple[type[BaseException], ...] = tuple(
    error for error in [getattr(torch, "AcceleratorError", None)] if error is not None
)


class SeededTargets(Targets, Protocol):
    """The teacher's logits by epoch, under the augmentation of `seed`."""

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Evaluator:
    """Trains trials on one device; everything that all trials share is held here once.

    `weights` is the teacher's state by layer name, on the CPU; `data` lies on `device`; `folder`
    gives the place of a trial's student.
    """

    space: Space
    weights: Mapping[str, Tensor]
    data: DataSet
    targets: SeededTargets
    training: TrainingSettings
    selection: Selection
    seed: int
    device: torch.device
    folder: Callable[[int], Path]

    def training_of(self, trial: Trial) -> tuple[Training, StudentNetwork]:
        """The training that evaluates a trial, and the student it trains."""
        graph = self.space.apply(trial.moves)
        state = inherit(self.space, graph, trial.moves, self.weights, self.selection)
        network = StudentNetwork(graph, state).to(self.device)
        network.preparation = preparation(self.data)
        training = Training(
            network,
            self.data,
            self.training,
            loss=make_loss(self.training),
            seed=derive_seed(self.seed, "trial", trial.number),
            augmentation_seed=derive_seed(self.seed, "augmentation"),
            targets=self.targets,
            device=self.device,
        )
        return training, network

    def __call__(self, trial: Trial) -> Outcome:
        """The validation accuracy of the saved student, or why its training failed.

        Faults of the disk or the device are raised: they would fail every later trial as well.
        """
        evaluation = Evaluation(self, trial)
        while (outcome := evaluation.advance()) is None:
            pass
        return outcome


class Evaluation:
    """One trial's evaluation, epoch by epoch."""

    def __init__(self, evaluator: Evaluator, trial: Trial) -> None:
        self._evaluator = evaluator
        self._trial = trial
        self._training: Training | None = None
        #: Seconds and epochs so far, and the validation accuracy after the last of them.
        self.seconds = 0.0
        self.epochs = 0
        self.accuracy = 0.0

    def advance(self) -> Outcome | None:
        """Trains one more epoch; the outcome once all are done or one has failed."""
        start = time.perf_counter()
        outcome = self._advance()
        self.seconds += time.perf_counter() - start
        return None if outcome is None else replace(outcome, seconds=self.seconds)

    def _advance(self) -> Outcome | None:
        try:
            if self._training is None:
                self._training, self._network = self._evaluator.training_of(self._trial)
                self._records = self._training.epochs()
            record = next(self._records, None)
            if record is not None:
                self.epochs, self.accuracy = record.epoch + 1, record.accuracy
            if self.epochs < self._evaluator.training.epochs:
                return None
            self._training.finish()
        except BROKEN_DEVICE:
            raise
        except Exception as error:  # one bad student must not end the search
            return Outcome(reason=f"{type(error).__name__}: {error}".splitlines()[0])
        return self._measured()

    def _measured(self) -> Outcome:
        evaluator = self._evaluator
        folder = evaluator.folder(self._trial.number)
        students.save(folder, self._network)
        saved = students.load(folder).to(evaluator.device)
        return Outcome(accuracy=accuracy(saved, evaluator.data.validation, evaluator.data))


def preparation(data: DataSet) -> Preparation:
    """What a network trained on `data` expects."""
    return Preparation(data.mean, data.std, data.class_names)
