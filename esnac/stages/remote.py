"""Final stages on the workers of a Ray cluster: each finalist is a task of its own.

Where several workers train one finalist, the task starts them and waits.

Needs the extra `ray`.
"""

from __future__ import annotations

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
from esnac.group import ALONE, Group
from esnac.runtime import WantedPrecision, use_own_threads
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

    def context(self, device: torch.device, index: int, group: Group = ALONE) -> StageContext:
        weights = {name: to_tensor(array) for name, array in self.weights.items()}
        teacher = StudentNetwork(ArchGraph.from_json(self.graph), weights).eval().to(device)
        data = unpack(self.data).to(device)
        targets = TeacherTargets(
            teacher, data, self.targets_seed, device, self.precision, group=group
        )
        return StageContext(data, targets, device, self.seed, index, group=group)


@dataclass(frozen=True)
class Job:
    """A finalist's student, and where its result goes; `mark` is a file in the run's folder."""

    stage: Stage
    source: students.Files
    target: Path
    mark: Path
    index: int

    def run(
        self, workshop: Workshop, device: torch.device, group: Group
    ) -> tuple[StageResult, students.Files | None]:
        """On a worker: the result, and the student's files unless they lie in `target` already.

        In a group that is what rank 0 has.
        """
        if device.type == "cpu":
            use_own_threads()
        folder = Path(tempfile.mkdtemp(prefix="esnac-"))
        try:
            students.write_files(folder, self.source)
            here = self.mark.exists()
            place = self.target if here else folder / "result"
            result = self.stage.run(folder, place, workshop.context(device, self.index, group))
            return result, None if here or group.rank else students.read_files(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run_stages(
    stage: Stage,
    finalists: Mapping[int, tuple[Path, Path]],
    workshop: Workshop,
    cluster: Cluster,
    report: Callable[[int, StageResult | str], None],
    *,
    retries: int = 2,
    together: int = 1,
    in_order: bool = False,
) -> None:
    """Runs `stage` on each finalist (index: source and target folder) and reports as they end.

    `together` workers share the work on one finalist. Reports may be wanted `in_order` of the
    finalists.

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
    if together == 1:
        cpus, gpus, at_once = cluster.cpus, cluster.gpus, cluster.workers
    else:
        cpus, gpus, at_once = 0.0, 0.0, max(1, cluster.workers // together)
    # A group tries again by itself.
    own_retries = retries if together == 1 else 0
    work = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, max_retries=own_retries)
    waiting = list(finalists)
    running: dict[Any, int] = {}
    held: dict[int, StageResult | str] = {}
    left = list(finalists)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index = waiting.pop(0)
                source, target = finalists[index]
                files = students.read_files(source)
                job = Job(stage, files, target, mark, index)
                running[work.remote(job, [shared], cluster, together, retries)] = index
            (task,), _ = ray.wait(list(running))
            index = running.pop(task)
            held[index] = _outcome(task, finalists[index][1])
            while held and (not in_order or left[0] in held):
                index = left[0] if in_order else next(iter(held))
                left.remove(index)
                report(index, held.pop(index))
    finally:
        for task in running:  # of a run that was interrupted
            ray.cancel(task, force=True)
        mark.unlink(missing_ok=True)


def _outcome(task: Any, target: Path) -> StageResult | str:
    try:
        result, files = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause or error
        if isinstance(cause, EsnacError):
            return str(cause)
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    except ray.exceptions.RayError as error:
        return f"its worker was lost ({type(error).__name__})"
    if files is not None:
        students.write_files(target, files)
    return replace(result, path=target)


def _task(
    job: Job, shared: list[Any], cluster: Cluster, together: int, retries: int
) -> tuple[StageResult, students.Files | None]:
    """`shared` holds the reference of the workshop: whoever works fetches it."""

    def work(group: Group, device: torch.device) -> tuple[StageResult, students.Files | None]:
        return job.run(ray.get(shared[0]), device, group)

    if together == 1:
        return work(ALONE, torch.device(cluster.device))
    from esnac.stages.distributed import together as run_together

    return run_together(work, together, cluster, retries=retries)
