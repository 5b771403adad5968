"""Workers of a Ray cluster joined to a group by Ray Train, for work that they do together.

Needs the extra `ray`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from esnac.cluster import Cluster, Verdict
from esnac.errors import EsnacError, TrainingError
from esnac.group import Group

T = TypeVar("T")


#: Seconds that a worker with an error waits for the others to have one, too.
AGREEING = 5.0


def together(
    work: Callable[[Group, torch.device], T], workers: int, cluster: Cluster, *, retries: int = 2
) -> T:
    """What `work` returns on rank 0 of `workers` workers of `cluster`, each with its device.

    They talk by nccl, or by gloo where they have no GPU for each of them. If a worker fails or is
    lost, all start again, up to `retries` times. An EsnacError of any of them ends the others, is
    final and raised here.
    """
    verdict: Any = ray.remote(num_cpus=0)(Verdict).remote()

    def rank(_config: dict[str, Any]) -> T | EsnacError:
        known: EsnacError | None = ray.get(verdict.first.remote())
        if known is not None:
            return known
        group = Group.joined()
        try:
            return work(group, get_device() if cluster.gpus else torch.device("cpu"))
        except EsnacError as error:
            ray.get(verdict.put.remote(group.rank, error))
            if _agreed(verdict, group):
                return error
            raise  # the others wait for this one: Ray ends and starts them, and they learn why

    with tempfile.TemporaryDirectory(prefix="esnac-train-") as storage:
        trainer = TorchTrainer(
            rank,  # type: ignore[arg-type]
            train_loop_config={},
            torch_config=TorchConfig(backend="nccl" if cluster.gpus >= 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=cluster.gpus > 0,
                resources_per_worker=cluster.resources,
            ),
            run_config=RunConfig(
                name="group",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=retries),
            ),
        )
        try:
            value: T | EsnacError = trainer.fit().return_value  # type: ignore[attr-defined]
            found = ray.get(verdict.first.remote()) or value
        except WorkerGroupError as error:
            found = ray.get(verdict.first.remote()) or TrainingError(_reason(error))
    if isinstance(found, EsnacError):
        raise found
    return found


def _agreed(verdict: Any, group: Group) -> bool:
    """Whether all ranks have come to an error, as they do of one that they share."""
    end = time.monotonic() + AGREEING
    while ray.get(verdict.count.remote()) < group.size:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _reason(error: WorkerGroupError) -> str:
    """In one line, what happened to the first worker that failed."""
    rank, fault = min(error.worker_failures.items())
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"worker {rank}: {(lines or [type(fault).__name__])[-1][:300]}"
