"""Workers of a Ray cluster joined to a group by Ray Train, for work that they do together.

Needs the extra `ray`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from esnac.cluster import Cluster
from esnac.errors import EsnacError, TrainingError
from esnac.group import Group

T = TypeVar("T")


def together(
    work: Callable[[Group, torch.device], T], workers: int, cluster: Cluster, *, retries: int = 2
) -> T:
    """What `work` returns on rank 0 of `workers` workers of `cluster`, each with its device.

    They talk by nccl, or by gloo where they have no GPU for each of them. If a worker fails or is
    lost, all start again, up to `retries` times. An EsnacError of any of them is final, ends the
    others and is raised here.
    """
    for left in reversed(range(retries + 1)):
        try:
            return _once(work, workers, cluster)
        except WorkerGroupError as error:
            if (own := _own_error(error)) is not None:
                raise own from None
            if not left:
                raise TrainingError(_reason(error)) from None
    raise AssertionError("unreachable")


def _once(work: Callable[[Group, torch.device], T], workers: int, cluster: Cluster) -> T:
    def rank(_config: dict[str, Any]) -> T:
        device = get_device() if cluster.gpus else torch.device("cpu")
        return work(Group.joined(), device)

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
            # Ray would try again after any error.
            run_config=RunConfig(
                name="group",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        found: T = trainer.fit().return_value  # type: ignore[attr-defined]
        return found


def _own_error(error: WorkerGroupError) -> EsnacError | None:
    """What a worker raised for the user to read; the others may have failed for want of it."""
    for _, fault in sorted(error.worker_failures.items()):
        # Ray wraps what a worker raises to keep its traceback.
        cause = getattr(fault, "_base_exc", fault)
        if isinstance(cause, EsnacError):
            return cause
    return None


def _reason(error: WorkerGroupError) -> str:
    """In one line, what happened to the first worker that failed."""
    rank, fault = min(error.worker_failures.items())
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"worker {rank}: {(lines or [type(fault).__name__])[-1][:300]}"
