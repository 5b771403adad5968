"""What a student on disk is worth: always of the saved files, loaded again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from esnac.graphs import student as students
from esnac.graphs.cost import cost
from esnac.graphs.masks import attach_masks, masks_of_zeros
from esnac.graphs.network import StudentNetwork
from esnac.quantization import packed, store
from esnac.quantization.attach import is_quantized
from esnac.stages._base import StageContext, StageResult
from esnac.training import accuracy

#: The file of a student that would be deployed: the first of these that its folder has.
DEPLOYED = (store.PACKED, students.WEIGHTS)


def load_student(path: str | Path) -> StudentNetwork:
    """The student in a folder, or in a `student.packed`, in eval mode on the CPU.

    Raises EsnacError when there is none or it is damaged.
    """
    path = Path(path)
    return packed.read(path) if path.is_file() else store.load(path)


def trainable(source: Path, device: torch.device) -> StudentNetwork:
    """The student in a folder, to be trained on: its exact zeros are masks."""
    student = store.load(source)
    if not is_quantized(student):  # a quantised one has its masks; other zeros are codes
        attach_masks(student, masks_of_zeros(student))
    return student.to(device)


def save_student(target: Path, student: StudentNetwork) -> None:
    """Writes the student and, if it is quantised, the file of it that is deployed."""
    store.save(target, student)
    if is_quantized(student):
        packed.write(target / store.PACKED, store.load(target))


def deployed_file(folder: Path) -> Path:
    """The file of the student in `folder` that would be deployed."""
    there = (folder / name for name in DEPLOYED)
    return next((path for path in there if path.is_file()), folder / students.WEIGHTS)


def measure(
    stage: str,
    folder: Path,
    context: StageContext,
    start: float,
    details: dict[str, Any] | None = None,
) -> StageResult:
    """The result of a stage that began at `start` (of time.perf_counter), by its files."""
    student = load_student(folder).to(context.device)
    spent = cost(student.graph)
    return StageResult(
        stage=stage,
        path=folder,
        accuracy=accuracy(student, context.data.test, context.data),
        validation_accuracy=accuracy(student, context.data.validation, context.data),
        params=spent.params,
        macs=spent.macs,
        seconds=time.perf_counter() - start,
        bytes=deployed_file(folder).stat().st_size,
        details=details or {},
    )
