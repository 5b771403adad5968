"""Joining a cluster, and what is answered when that cannot work."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from esnac import cluster
from esnac.cli import main
from esnac.cluster import Cluster, ClusterSettings, connected, environment
from esnac.errors import EsnacError, SettingsError


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """The address of a port that accepts, reads, and says `answer`; None: nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(100)
                    if answer is None:
                        connection.recv(100)  # until the other side goes away
                    else:
                        connection.sendall(answer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def node(cpus: float, gpus: float = 0.0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    "address",
    ["", "here", "host", ":6379", "host:", "host:0", "host:65536", "host:x", "http://host:6379"],
)
def test_malformed_address(address: str) -> None:
    with pytest.raises(SettingsError, match=r"--address is auto or HOST:PORT, such as"):
        ClusterSettings("ray", address=address)


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:1", "[::1]:6379"])
def test_well_formed_address(address: str) -> None:
    assert ClusterSettings("ray", address=address).address == address


def test_ray_client_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"Ray Client .* not supported.*--address auto"):
        ClusterSettings("ray", address="ray://head:10001")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "--workers is at least 1; got 0"),
        ({"cpus_per_worker": -1.0}, "--cpus-per-worker is not negative; got -1"),
        ({"gpus_per_worker": float("nan")}, "--gpus-per-worker is not negative; got nan"),
        ({"gpus_per_worker": 1.5}, "a share of one GPU or a whole number; got 1.5"),
        ({"cpus_per_worker": 0.0}, "needs a processor or a GPU"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ClusterSettings("ray", **wrong)


@pytest.mark.parametrize("given", [{"workers": 2}, {"address": "auto"}, {"cpus_per_worker": 2.0}])
def test_serial_takes_no_workers(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="belong to --executor ray"):
        ClusterSettings("serial", **given)


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(EsnacError, match=r"needs Ray: pip install 'esnac\[ray\]'"),
        connected(ClusterSettings("ray", workers=2)),
    ):
        pass


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([node(2), node(3)], 1.0, 0.0, 5),
        ([node(2), node(3), node(8, alive=False)], 2.0, 0.0, 2),  # none spans two nodes
        ([node(1)], 0.1, 0.0, 10),
        ([node(8, 2), node(8)], 1.0, 0.25, 8),
        ([node(8, 2)], 1.0, 0.6, 2),  # 1.2 of 2 GPUs, but on each only one worker
        ([node(16, 4)], 1.0, 2.0, 2),
        ([node(2, 4)], 0.0, 1.0, 4),
    ],
)
def test_room(nodes: list[dict[str, Any]], cpus: float, gpus: float, room: int) -> None:
    each: dict[str, Any] = {"cpus_per_worker": cpus, "gpus_per_worker": gpus}
    assert cluster._room(nodes, ClusterSettings("ray", **each)) == Cluster(room, cpus, gpus)
    with pytest.raises(EsnacError, match=f"room for {room} workers .*asked for: {room + 1}"):
        cluster._room(nodes, ClusterSettings("ray", workers=room + 1, **each))


def test_no_room_at_all() -> None:
    message = r"The cluster has 4 CPUs and 0 GPUs on 2 nodes, room for 0 workers"
    for wrong in ({"gpus_per_worker": 1.0}, {"cpus_per_worker": 3.0}):
        with pytest.raises(EsnacError, match=message):
            cluster._room([node(2), node(2)], ClusterSettings("ray", **wrong))


def test_worker_in_rays_words() -> None:
    assert Cluster(2, 1.0, 0.0).resources == {"CPU": 1.0}
    assert Cluster(2, 1.0, 0.25).resources == {"CPU": 1.0, "GPU": 0.25}
    assert (Cluster(2, 1.0, 0.0).device, Cluster(2, 1.0, 0.25).device) == ("cpu", "cuda")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "a..b"])
def test_nothing_answers(host: str) -> None:
    address = f"{host}:{closed_port()}"
    with pytest.raises(EsnacError, match=f"Nothing answers at {re.escape(address)}"):
        cluster._check_reachable(address)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n", b"SSH-2.0-x\r\n", None])
def test_not_ray_but_something_else(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.3)
    with server(answer) as address, pytest.raises(EsnacError, match="is not a Ray cluster"):
        cluster._check_reachable(address)


def test_a_grpc_server_may_be_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    settings_frame = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0])  # RFC 9113, section 4.1: the type is 4
    with server(settings_frame + bytes(6)) as address:
        cluster._check_reachable(address)
    monkeypatch.setenv("RAY_USE_TLS", "1")  # what is said is encrypted then
    with server(b"") as address:
        cluster._check_reachable(address)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken", "wants its token"),
        ("No node info found matching attributes: ''", "This machine is no node of the Ray"),
        ("Timed out", r"Cannot join the Ray cluster at h:1: Failed to connect to h:1\. Is it"),
    ],
)
def test_why_it_cannot_be_joined(cause: str, message: str) -> None:
    error = ConnectionError("Failed to connect\n  to h:1.")
    error.__cause__ = RuntimeError(cause)
    reason = cluster._why(error, "h:1")
    assert re.search(message, reason)
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--address", "127.0.0.1:{port}"], "Nothing answers at 127.0.0.1:"),
        (["--address", "nonsense"], "--address is auto or HOST:PORT"),
        (["--executor", "serial", "--workers", "2"], "belong to --executor ray"),
        (["--device", "cuda:1", "--workers", "2"], "cuda:1 is no device of workers, which would"),
        (["--set", "search.mode=asynchronous"], "search.mode = 'asynchronous' needs workers"),
        (["--set", "search.early_stopping=asha"], "search.early_stopping = 'asha' needs workers"),
    ],
)
def test_command_line(
    flags: list[str], message: str, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "teachers", "data")]
    spaces = f"--search-spaces={root / 'search_spaces'}"
    words = ["search", "--network", "resnet20", "--dataset", "digits", spaces, *folders]
    assert main(words + [flag.format(port=closed_port()) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.json*")), "neither a teacher nor a run is begun"


JOIN = """
import sys, time
from esnac.cluster import ClusterSettings, connected
from esnac.errors import EsnacError
for given in eval(sys.argv[1]):
    start = time.monotonic()
    try:
        with connected(ClusterSettings("ray", **given)) as cluster:
            import ray
            print(cluster.workers, "workers,", ray.nodes()[0]["NodeManagerAddress"], flush=True)
    except EsnacError as error:
        print(error, flush=True)
    assert time.monotonic() - start < 30
"""


def join(*given: dict[str, Any], **environment: str) -> list[str]:
    """A line for each attempt, in a process of its own: Ray keeps what it was first told."""
    command = [sys.executable, "-c", JOIN, repr(given)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and environment of a cluster of one node and processor, with a token of its own."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a" * 64, encoding="utf-8")
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port = closed_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = [f"--port={port}", "--num-cpus=1", "--include-dashboard=false"]
    process = subprocess.Popen(
        [*ray, *options],
        env=os.environ | own | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                cluster._check_reachable(address)
                break
            except EsnacError:
                assert process.poll() is None, "the head has ended"
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield address, own
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_running_cluster(head: tuple[str, dict[str, str]]) -> None:
    address, own = head
    joined, crowded, large, without = join(
        {"address": address},
        {"address": address, "workers": 2},
        {"address": address, "cpus_per_worker": 2.0},
        {"address": address, "gpus_per_worker": 1.0},
        **own,
    )
    assert joined.startswith("1 workers,")
    assert "The cluster has 1 CPUs and 0 GPUs on 1 nodes, room for 1 workers" in crowded
    assert "room for 0 workers that take 2 and 0 each" in large
    assert "room for 0 workers that take 1 and 1 each" in without


@pytest.mark.slow
def test_a_cluster_wants_its_token(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, _ = head
    other = tmp_path / "token"
    other.write_text("b" * 64, encoding="utf-8")
    for variables in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(other)},
    ):
        (line,) = join({"address": address}, **variables)
        assert line.startswith(f"The Ray cluster at {address} wants its token.")


@pytest.mark.slow
def test_a_cluster_of_its_own(tmp_path: Path) -> None:
    """Workers may outnumber processors there, but not GPUs; nobody else reaches it."""
    token = tmp_path / "token"
    token.write_text("a" * 64, encoding="utf-8")
    workers = cluster._processors() + 1
    lines = join(
        {"workers": workers},
        {"workers": 1, "gpus_per_worker": 64.0},
        RAY_AUTH_TOKEN_PATH=str(token),
    )
    assert lines[0] in (f"{workers} workers, 127.0.0.1", f"{workers} workers, ::1")
    assert "room for 0 workers that take 1 and 64 each; asked for: 1" in lines[1]


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESNAC_A", "the user's")
    monkeypatch.delenv("ESNAC_B", raising=False)
    with environment({"ESNAC_A": "ours", "ESNAC_B": "ours"}):
        assert (os.environ["ESNAC_A"], os.environ["ESNAC_B"]) == ("the user's", "ours")
    assert os.environ["ESNAC_A"] == "the user's"
    assert "ESNAC_B" not in os.environ
