"""Stages on the workers of a Ray cluster: each link of each finalist's chain is a task of its own.

Where several workers train one finalist, the task starts them and waits.

Needs the extra `ray`.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from esnac.cluster import Cluster
from esnac.data.arrays import pack, to_array, to_tensor, unpack
from esnac.distillation.targets import TeacherTargets
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import StudentNetwork
from esnac.group import ALONE, Group
from esnac.runtime import WantedPrecision, set_up_worker
from esnac.stages._base import Stage, StageContext, StageResult
from esnac.stages.pipeline import FAILURES, Report, Step, reason
from esnac.training import TrainingSettings

#: A result, and the student's files unless they lie in the run's folder already.
Made = tuple[StageResult, "students.Files | None"]


@dataclass(frozen=True)
class Workshop:
    """What every finalist's stages need, as plain data: the data set and the teacher."""

    data: Mapping[str, Any]
    graph: str
    weights: Mapping[str, np.ndarray]
    targets_seed: int
    precision: WantedPrecision
    training: TrainingSettings
    teacher_accuracy: float
    seed: int

    @classmethod
    def of(
        cls,
        context: StageContext,
        graph: ArchGraph,
        weights: Mapping[str, torch.Tensor],
        precision: WantedPrecision,
    ) -> Workshop:
        """Of the context that stages would have here; its device and index do not matter."""
        return cls(
            pack(context.data),
            graph.to_json(),
            {name: to_array(tensor) for name, tensor in weights.items()},
            context.targets.seed,
            precision,
            context.training,
            context.teacher_accuracy,
            context.seed,
        )

    def context(self, device: torch.device, index: int, group: Group = ALONE) -> StageContext:
        weights = {name: to_tensor(array) for name, array in self.weights.items()}
        teacher = StudentNetwork(ArchGraph.from_json(self.graph), weights).eval().to(device)
        data = unpack(self.data).to(device)
        targets = TeacherTargets(
            teacher, data, self.targets_seed, device, self.precision, group=group
        )
        return StageContext(
            data,
            targets,
            device,
            self.seed,
            index,
            self.training,
            self.teacher_accuracy,
            group=group,
        )


@dataclass(frozen=True)
class Job:
    """A student, and where a stage's result goes; `mark` is a file in the run's folder."""

    stage: Stage
    source: students.Files
    target: Path
    mark: Path
    index: int

    def run(self, workshop: Workshop, device: torch.device, group: Group) -> Made:
        """On a worker. In a group rank 0 alone has files."""
        if device.type == "cpu":
            set_up_worker()
        folder = Path(tempfile.mkdtemp(prefix="esnac-"))
        try:
            source = folder / "source"
            students.write_files(source, self.source)
            here = self.mark.exists()
            place = self.target if here else folder / "result"
            result = self.stage.run(source, place, workshop.context(device, self.index, group))
            return result, None if here or group.rank else students.read_files(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run_stages(
    chains: Iterable[Sequence[Step]],
    workshop: Workshop,
    cluster: Cluster,
    report: Report,
    *,
    retries: int = 2,
    together: int = 1,
    in_order: bool = False,
) -> None:
    """Runs each finalist's steps and reports them as they end; one that fails ends its chain.

    `together` workers share the work on one finalist. Reports may be wanted `in_order`: those of
    one finalist after those of the one before it.

    A report is the result, or in one line why there is none. A task whose worker is lost is tried
    again up to `retries` times. Workers that see the run's folder keep their checkpoints there, so
    that an interrupted training goes on; others start again.
    """
    waiting = [list(chain) for chain in chains if chain]
    if not waiting:
        return
    pass_on = _in_order(waiting, report) if in_order else report
    mark = waiting[0][0].target.parent / f".{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    submit, at_once = _submitter(ray.put(workshop), cluster, together, retries, mark)
    running: dict[Any, list[Step]] = {}  # the first step of a chain, and what follows it
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                chain = waiting.pop(0)
                running[submit(chain[0])] = chain
            (task,), _ = ray.wait(list(running))
            step, *rest = running.pop(task)
            outcome = _outcome(task, step.target)
            if rest and not isinstance(outcome, str):
                waiting.insert(0, rest)
            pass_on(step, outcome)
    finally:
        for task in running:  # of a run that was interrupted
            ray.cancel(task, force=True)
        mark.unlink(missing_ok=True)


def _in_order(chains: Iterable[Sequence[Step]], report: Report) -> Report:
    """Reports as `report`, but holds those of a finalist until the ones before it have ended."""
    last = {chain[-1].index: chain[-1] for chain in chains}
    held: dict[int, list[tuple[Step, StageResult | str]]] = {index: [] for index in last}

    def pass_on(step: Step, outcome: StageResult | str) -> None:
        held[step.index].append((step, outcome))
        while held:
            first = next(iter(held))
            reports, held[first] = held[first], []
            for found in reports:
                report(*found)
            ended = any(found is last[first] or isinstance(why, str) for found, why in reports)
            if not ended:
                return
            del held[first]

    return pass_on


def _submitter(
    shared: Any, cluster: Cluster, together: int, retries: int, mark: Path
) -> tuple[Callable[[Step], Any], int]:
    """What starts the task of a step, and how many such tasks there may be at once."""
    if together == 1:
        cpus, gpus, at_once = cluster.cpus, cluster.gpus, cluster.workers
    else:
        cpus, gpus, at_once = 0.0, 0.0, max(1, cluster.workers // together)
    # A group tries again by itself.
    own_retries = retries if together == 1 else 0
    work = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, max_retries=own_retries)

    def submit(step: Step) -> Any:
        files = students.read_files(step.source)
        job = Job(step.link.stage, files, step.target, mark, step.index)

        def share(group: Group, device: torch.device) -> Made:
            return job.run(ray.get(shared), device, group)

        return work.remote(share, cluster, together, retries)

    return submit, at_once


def _outcome(task: Any, target: Path) -> StageResult | str:
    try:
        result, files = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause or error
        if isinstance(cause, FAILURES):
            return reason(cause)
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    except ray.exceptions.RayError as error:
        return f"its worker was lost ({type(error).__name__})"
    if files is not None:
        students.write_files(target, files)
    return replace(result, path=target)


def _task(
    work: Callable[[Group, torch.device], Made], cluster: Cluster, together: int, retries: int
) -> Made:
    if together == 1:
        return work(ALONE, torch.device(cluster.device))
    from esnac.stages import distributed

    return distributed.together(work, together, cluster, retries=retries)
