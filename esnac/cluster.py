"""A Ray cluster: one that is there already, or one on this machine for the time of a run."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from esnac.errors import EsnacError, SettingsError

#: Seconds after which an address that does not answer counts as unreachable.
PATIENCE = 10.0

#: What an --address looks like.
_EXPECTED = "--address is auto or HOST:PORT"

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

# Ray takes a minute to find that it cannot join a cluster. It reads these when it is imported.
_WHEN_JOINING = {
    "RAY_NUM_REDIS_GET_RETRIES": "5",
    "RAY_gcs_server_request_timeout_seconds": "15",
}

# A cluster of our own listens on 127.0.0.1 alone, as Ray does by itself on Windows and macOS, or
# whoever reaches this machine could run code on it. Read when Ray is imported, too.
_WHEN_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# A client's first bytes in HTTP/2 (RFC 9113, section 3.4), on which gRPC is built, and the type of
# the frame that a server answers with first.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


@dataclass(frozen=True)
class ClusterSettings:
    """Where a run's work is done. Not part of what determines its results."""

    executor: Literal["serial", "ray"] = "serial"
    #: Evaluations at a time; None: as many as the cluster has room for.
    workers: int | None = None
    #: "auto" or HOST:PORT of a cluster to join; None: one of its own.
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
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise SettingsError(
                f"--gpus-per-worker is a share of one GPU or a whole number; got "
                f"{self.gpus_per_worker:g}."
            )
        if self.cpus_per_worker == self.gpus_per_worker == 0:
            raise SettingsError("A worker needs a processor or a GPU: --cpus-per-worker is 0.")
        asked = self.workers, self.address, self.cpus_per_worker, self.gpus_per_worker
        if self.executor == "serial" and asked != (None, None, 1.0, 0.0):
            raise SettingsError(
                "--workers, --address and resources of workers belong to --executor ray."
            )
        if self.address not in (None, "auto"):
            _host_and_port(self.address)


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


class Mailbox:
    """An actor that keeps what workers send, by number, until it is taken.

    It and `Verdict` are here because a process that holds one imports its module.
    """

    def __init__(self) -> None:
        self._letters: dict[int, dict[str, bytes]] = {}

    def put(self, number: int, files: dict[str, bytes]) -> None:
        self._letters[number] = files

    def take(self, number: int) -> dict[str, bytes]:
        return self._letters.pop(number)


class Verdict:
    """An actor that keeps the errors of workers that no further try would mend, by rank."""

    def __init__(self) -> None:
        self._errors: dict[int, EsnacError] = {}

    def put(self, rank: int, error: EsnacError) -> None:
        self._errors[rank] = error

    def count(self) -> int:
        return len(self._errors)

    def first(self) -> EsnacError | None:
        return self._errors[min(self._errors)] if self._errors else None


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment inside, but for those that are set; afterwards as before."""
    own = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Cluster]:
    """Joins the cluster at `settings.address`, or starts one here and shuts it down at the end.

    A cluster that this process is connected to already is used and stays. Raises EsnacError for
    an address that does not answer and for workers that the cluster has no room for.
    """
    own = _WHEN_ALONE if settings.address is None else _WHEN_JOINING
    with environment(_ENVIRONMENT | own):
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
            yield _room(ray.nodes(), settings)
        finally:
            if ours:
                ray.shutdown()


def _connect(ray: Any, settings: ClusterSettings) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if settings.address is None:
        wanted = math.ceil((settings.workers or 1) * settings.cpus_per_worker)
        cpus = max(_processors(), wanted)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    if settings.address != "auto":
        _check_reachable(settings.address)
    try:
        with _hushed():
            ray.init(address=settings.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EsnacError(_why(error, settings.address)) from None


def _processors() -> int:
    """Of this machine, as far as this process may use them."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _host_and_port(address: str) -> tuple[str, int]:
    """Raises SettingsError for an address that no cluster can have."""
    if address.startswith("ray://"):
        # Ray Tune would run in the cluster then, away from the journal.
        raise SettingsError(
            f"{_EXPECTED}; Ray Client ({address}) is not supported. Run the command on a node of "
            "the cluster with --address auto (this machine becomes one by ray start "
            "--address=HEAD:6379 --num-cpus=0), or send it there: ray job submit."
        )
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingsError(f"{_EXPECTED}, such as 10.0.0.1:6379; got {address!r}.")
    return host.strip("[]"), int(port)


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, port = _host_and_port(address)
    start = f"Start the cluster there with ray start --head --port={port}, or correct --address."
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            grpc = _encrypted() or _speaks_grpc(connection)
    except (OSError, UnicodeError) as error:
        raise EsnacError(f"Nothing answers at {address} ({error}). {start}") from None
    if not grpc:
        raise EsnacError(f"What answers at {address} is not a Ray cluster. {start}")


def _encrypted() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _speaks_grpc(connection: socket.socket) -> bool:
    try:
        connection.sendall(_HELLO)
        answer = connection.recv(9)
    except OSError:
        return False
    return len(answer) == 9 and answer[3] == _SETTINGS


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray's compiled part writes each failed attempt to the standard error of the process."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _why(error: Exception, address: str) -> str:
    """In one line."""
    cause = f"{type(error).__name__}: {error} {error.__cause__}"
    if "AuthenticationError" in cause:
        return (
            f"The Ray cluster at {address} wants its token. Set RAY_AUTH_MODE=token and have the "
            "token of its head node (ray get-auth-token there) in ~/.ray/auth_token here."
        )
    if "No node info found" in cause:
        return (
            f"This machine is no node of the Ray cluster at {address}. Make it one: "
            f"ray start --address={address} --num-cpus=0, or run the command on a node."
        )
    reason = " ".join(str(error).split()).rstrip(".")
    return (
        f"Cannot join the Ray cluster at {address}: {reason}. Is it running (ray status)? Start "
        "one with: ray start --head"
    )


def _room(nodes: Sequence[dict[str, Any]], settings: ClusterSettings) -> Cluster:
    """A worker needs all it takes on one node. `nodes`: as `ray.nodes()` tells of them."""
    cpus, gpus = settings.cpus_per_worker, settings.gpus_per_worker
    there = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(_fit(node.get("CPU", 0.0), node.get("GPU", 0.0), cpus, gpus) for node in there)
    workers = settings.workers or room
    if workers > room or not workers:
        has = [sum(node.get(name, 0.0) for node in there) for name in ("CPU", "GPU")]
        raise EsnacError(
            f"The cluster has {has[0]:g} CPUs and {has[1]:g} GPUs on {len(there)} nodes, room for "
            f"{room} workers that take {cpus:g} and {gpus:g} each; asked for: {workers or 1}. Ask "
            "for less with --workers, --cpus-per-worker and --gpus-per-worker, or add nodes."
        )
    return Cluster(workers, cpus, gpus)


def _fit(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    """Workers on one node at a time."""
    by_cpus = math.floor(node_cpus / cpus + 1e-9) if cpus else math.inf
    if not gpus:
        by_gpus = math.inf
    elif gpus >= 1:
        by_gpus = node_gpus // gpus
    else:  # the shares of a worker are of one GPU
        by_gpus = node_gpus // 1 * math.floor(1 / gpus + 1e-9)
    return int(min(by_cpus, by_gpus))
