"""A search that is killed again and again ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = (
    "data.limit=200", "teacher.epochs=4", "search.steps=2", "search.batch=3", "search.pool=50",
    "surrogate.hidden=8", "surrogate.steps=10", "evaluation.epochs=4", "finish.training.epochs=8",
)  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "esnac",
        "search",
        "--network",
        "resnet20",
        "--dataset",
        "digits",
    ]
    words += ["--threads", "1", "--device", "cpu", "--suffix", "x"]
    words += ["--runs", str(folder / "runs"), "--teachers", str(folder / "teachers")]
    for setting in SETTINGS:
        words += ["--set", setting]
    return [*words, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def journal(folder: Path) -> list[dict]:
    """The events without what differs between two equal runs."""
    path = folder / "runs" / "resnet20-digits-x" / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in events]


@pytest.mark.slow
def test_killed_five_times_and_resumed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    started = time.monotonic()
    subprocess.run(command(whole), check=True, capture_output=True, env=environment())
    seconds = time.monotonic() - started

    rng = random.Random(5)
    made = broken / "runs" / "resnet20-digits-x"
    for _ in range(5):
        more = ["--resume"] if made.exists() else []
        process = subprocess.Popen(
            command(broken, *more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        time.sleep(rng.uniform(0.2, 0.8) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = subprocess.run(
        command(broken, *(["--resume"] if made.exists() else [])),
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert end.returncode == 0, end.stderr
    expected, met = journal(whole), journal(broken)
    assert sorted(map(str, met)) == sorted(map(str, expected))
    done = [e["trial"] for e in met if e["event"] == "trial" and e["state"] == "DONE"]
    assert done == sorted(set(done)) == list(range(6))
