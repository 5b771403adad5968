"""The examples run; with a small budget here."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from esnac.cli import build_parser


def test_own_network(root: Path, capsys) -> None:
    main = runpy.run_path(str(root / "examples" / "own_network.py"))["main"]
    result = main(
        steps=60,
        search={"steps": 1, "batch": 2, "pool": 20},
        surrogate={"hidden": 4, "steps": 2},
        evaluation={"epochs": 1},
        finish={"finalists": 1, "training": {"epochs": 1}},
    )
    assert "student:" in capsys.readouterr().out
    assert (result.path / "finalists" / "0" / "architecture.json").is_file()


@pytest.mark.slow
def test_own_tuner(root: Path, tmp_path: Path) -> None:
    """In a process of its own, as it starts a Ray of its own."""
    (tmp_path / "token").write_text("a" * 64, encoding="utf-8")
    script = "import runpy, sys; main = runpy.run_path(sys.argv[1])['main']\n"
    script += "main(epochs=1, steps=1, batch=2, pool=20)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(root / "examples" / "own_tuner.py")],
        env=os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (accuracy,) = re.findall(r"^teacher: [\d,]+ parameters, accuracy (\S+) %$", done.stdout, re.M)
    (f,) = re.findall(r"^best of 2 students: [\d,]+ parameters, f (\S+)$", done.stdout, re.M)
    # The size part of f is at most 1. After so few steps a student may well beat the teacher.
    assert 0 < float(f) < 100 / float(accuracy)


@pytest.fixture(scope="module")
def image(root: Path) -> str:
    """Ray's own image of the version that esnac is tested with."""
    constraints = (root / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^ray==(.*)$", constraints, re.MULTILINE)
    return f"rayproject/ray:{version}-py311"


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def test_cluster_launcher(root: Path, image: str) -> None:
    """By what `ray up` does with it before it looks for a host."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(root / "examples" / "ray_cluster.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["docker"]["image"] == image
    (workers,) = prepared["available_node_types"].values()
    assert workers["min_workers"] == workers["max_workers"] == 2
    with pytest.raises(ValidationError, match="dokcer"):
        validate_config(prepared | {"dokcer": prepared["docker"]})


def test_kuberay_job(root: Path, image: str) -> None:
    """What can be known without a Kubernetes that has KubeRay's definitions."""
    from ray.runtime_env import RuntimeEnv

    job = load(root / "examples" / "kuberay_job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    python, flag, module, *words = shlex.split(spec["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "esnac")
    args = build_parser().parse_args(words)
    assert (args.command, args.address) == ("search", "auto")
    assert RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"])).has_pip()

    cluster = spec["rayClusterSpec"]
    assert image == f"rayproject/ray:{cluster['rayVersion']}-py311"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == image
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        volumes = {volume["name"] for volume in pod["volumes"]}
        (mount,) = container["volumeMounts"]
        assert mount["name"] in volumes
        for folder in (args.runs, args.teachers, args.data):
            assert folder.startswith(mount["mountPath"] + "/")
