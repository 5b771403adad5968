"""Final stages on the workers of a Ray cluster: each finalist is a task of its own.

Needs the extra `ray`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from esnac.cluster import Cluster
from esnac.data import DataSet
from esnac.data.arrays import pack, to_array, to_tensor, unpack
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import StudentNetwork
from esnac.runtime import WantedPrecision
from esnac.stages._base import Stage, StageContext, StageResult

#: A finalist's index, and what became of it.
Report = tuple[int, "StageResult | str"]


@dataclass(frozen=True)
class Workshop:
    """What every finalist's stages need, as plain data: the data set and the teacher."""

    data: Mapping[str, Any]
    graph: str
    weights: Mapping[str, np.ndarray]
    targets_seed: int
    precision: WantedPrecision
    seed: int

    @classmethod
    def of(
        cls,
        data: DataSet,
        graph: ArchGraph,
        weights: Mapping[str, torch.Tensor],
        targets: TeacherTargets,
        precision: WantedPrecision,
        seed: int,
    ) -> Workshop:
        arrays = {name: to_array(tensor) for name, tensor in weights.items()}
        return cls(pack(data), graph.to_json(), arrays, targets.seed, precision, seed)

    def context(self, device: torch.device, index: int) -> StageContext:
        weights = {name: to_tensor(array) for name, array in self.weights.items()}
        teacher = StudentNetwork(ArchGraph.from_json(self.graph), weights).eval().to(device)
        data = unpack(self.data).to(device)
        targets = TeacherTargets(teacher, data, self.targets_seed, device, self.precision)
        return StageContext(data, targets, device, self.seed, index)


def run_stages(
    stage: Stage,
    finalists: Mapping[int, tuple[Path, Path]],
    workshop: Workshop,
    cluster: Cluster,
    report: Callable[[int, StageResult | str], None],
    *,
    retries: int = 2,
) -> None:
    """Runs `stage` on each finalist (index: source and target folder) and reports as they end.

    A report is the result, or in one line why there is none. A task whose worker is lost is tried
    again up to `retries` times. Workers that see the run's folder keep their checkpoints there, so
    that an interrupted training goes on; others start again.
    """
    if not finalists:
        return
    mark = next(iter(finalists.values()))[1].parent / f".{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    shared = ray.put(workshop)
    work = ray.remote(_work).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=retries
    )
    waiting = list(finalists)
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < cluster.workers:
                index = waiting.pop(0)
                source, target = finalists[index]
                files = _read(source)
                task = work.remote(stage, files, target, mark, shared, cluster.device, index)
                running[task] = index
            (task,), _ = ray.wait(list(running))
            index = running.pop(task)
            report(index, _outcome(task, finalists[index][1]))
    finally:
        mark.unlink(missing_ok=True)


def _outcome(task: Any, target: Path) -> StageResult | str:
    try:
        result, files = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EsnacError):
            return str(error.cause)
        return str(error.cause or error).splitlines()[-1]
    except ray.exceptions.RayError as error:
        return f"its worker was lost ({type(error).__name__})"
    if files is not None:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
    return replace(result, path=target)


def _work(
    stage: Stage,
    source: Mapping[str, bytes],
    target: Path,
    mark: Path,
    workshop: Workshop,
    device: str,
    index: int,
) -> tuple[StageResult, dict[str, bytes] | None]:
    """On a worker: the result, and the student's files unless they lie in `target` already."""
    if device == "cpu":
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    folder = Path(tempfile.mkdtemp(prefix="esnac-"))
    try:
        for name, content in source.items():
            (folder / name).write_bytes(content)
        here = mark.exists()
        place = target if here else folder / "result"
        result = stage.run(folder, place, workshop.context(torch.device(device), index))
        return result, None if here else _read(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in students.FILES}
