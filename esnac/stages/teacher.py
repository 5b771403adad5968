"""Training of a teacher by its recipe; it leaves weights and card in the teacher's folder."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from esnac import __version__, teachers
from esnac.data import DataSet
from esnac.distillation.losses import make_loss
from esnac.errors import TrainingError
from esnac.graphs.cost import cost
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.settings import to_plain
from esnac.training import EpochRecord, TrainingSettings, accuracy, fit


@dataclass(frozen=True)
class TeacherJob:
    """Which teacher to train and how; `data_settings` are the plain settings of the split."""

    network: str
    dataset: str
    training: TrainingSettings
    data_settings: dict[str, object]
    seed: int


def train_teacher(
    module: nn.Module,
    data: DataSet,
    job: TeacherJob,
    folder: Path,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> teachers.Card:
    """Trains `module` in place and saves it; an interrupted training goes on where it stopped."""
    graph = trace(module, data.input_shape)
    checkpoint = folder / "checkpoint"
    result = fit(
        module.to(device),
        data,
        job.training,
        loss=make_loss(job.training),
        seed=derive_seed(job.seed, "teacher"),
        augmentation_seed=derive_seed(job.seed, "teacher augmentation"),
        device=device,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    test, validation = (accuracy(module, part, data) for part in (data.test, data.validation))
    if min(test, validation) == 0:
        raise TrainingError(
            f"After {job.training.epochs} epochs the teacher is right on no image of the "
            "validation or test split. Train it longer: --set teacher.epochs=N."
        )
    spent = cost(graph)
    card = teachers.Card(
        network=job.network,
        dataset=job.dataset,
        accuracy=test,
        validation_accuracy=validation,
        params=spent.params,
        macs=spent.macs,
        data=dict(job.data_settings),
        recipe=to_plain(job.training),
        seed=job.seed,
        sha256="",
        versions=versions(),
        seconds=result.seconds,
    )
    card = teachers.save(folder, module, card)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return card


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "esnac": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
