"""A Ray cluster: one that is there already, or one on this machine for the time of a run."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from esnac.errors import EsnacError, SettingsError

#: Seconds after which an address that does not answer counts as unreachable.
PATIENCE = 10.0

# Ray Tune's own files, logs, interrupt handler and reports of use stay off.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
}


@dataclass(frozen=True)
class ClusterSettings:
    """Where a run's work is done. Not part of what determines its results."""

    executor: Literal["serial", "ray"] = "serial"
    #: Evaluations at a time; None: as many as the cluster has room for.
    workers: int | None = None
    #: "auto", HOST:PORT or ray://HOST:PORT of a cluster to join; None: one of its own.
    address: str | None = None
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"--workers is at least 1; got {self.workers}.")
        for name in ("cpus_per_worker", "gpus_per_worker"):
            if not 0 <= getattr(self, name) < math.inf:
                flag = "--" + name.replace("_", "-")
                raise SettingsError(f"{flag} is not negative; got {getattr(self, name)}.")
        if self.cpus_per_worker == self.gpus_per_worker == 0:
            raise SettingsError("A worker needs a processor or a GPU: --cpus-per-worker is 0.")
        asked = self.workers, self.address, self.cpus_per_worker, self.gpus_per_worker
        if self.executor == "serial" and asked != (None, None, 1.0, 0.0):
            raise SettingsError(
                "--workers, --address and resources of workers belong to --executor ray."
            )


@dataclass(frozen=True)
class Cluster:
    """A connected cluster: how many workers run at a time and what each of them takes."""

    workers: int
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker, in Ray's words."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def device(self) -> str:
        """The device of a worker."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Cluster]:
    """Joins the cluster at `settings.address`, or starts one here and shuts it down at the end.

    A cluster that this process is connected to already is used and stays. Raises EsnacError for
    an address that does not answer and for workers that the cluster has no room for.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise EsnacError(
            "--executor ray needs Ray: pip install 'esnac[ray]', or leave it out."
        ) from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, settings)
    try:
        yield _room(ray.cluster_resources(), settings)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, settings: ClusterSettings) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.address is None:
        wanted = math.ceil((settings.workers or 1) * settings.cpus_per_worker)
        cpus = max(len(os.sched_getaffinity(0)), wanted)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    _check_reachable(settings.address)
    try:
        ray.init(address=settings.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EsnacError(
            f"Cannot join the Ray cluster at {settings.address}: {line} "
            "Is it running (ray status)? Start one with: ray start --head"
        ) from None


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--address is auto, HOST:PORT or ray://HOST:PORT; got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EsnacError(
            f"Nothing answers at {address} ({error}). Start the cluster there with "
            f"ray start --head --port={port}, or correct --address."
        ) from None


def _room(resources: dict[str, float], settings: ClusterSettings) -> Cluster:
    cpus, gpus = settings.cpus_per_worker, settings.gpus_per_worker
    room = math.inf
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each:
            room = min(room, math.floor(resources.get(name, 0.0) / each + 1e-9))
    workers = settings.workers or int(room)
    if workers > room or not workers:
        has = ", ".join(f"{resources.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))
        wanted = f"{workers or 1} workers of {cpus:g} CPUs and {gpus:g} GPUs each"
        raise EsnacError(
            f"The cluster has {has}; {wanted} do not fit. Ask for fewer with --workers, "
            "--cpus-per-worker and --gpus-per-worker, or add nodes."
        )
    return Cluster(workers, cpus, gpus)
