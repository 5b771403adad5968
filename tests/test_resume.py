"""A search that is killed again and again ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
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
    return _words("search", folder, *more)


def chain(folder: Path, *more: str) -> list[str]:
    """Three links on the teacher in `folder`."""
    stages = "train(epochs=6), train(scratch, epochs=6), train(epochs=2, learning_rate=0.01)"
    return _words("compress", folder, "--stages", stages, *more)


def _words(name: str, folder: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "esnac", name, "--network", "resnet20", "--dataset", "digits"]
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


def run_whole(words: list[str]) -> float:
    """Seconds it took."""
    started = time.monotonic()
    subprocess.run(words, check=True, capture_output=True, env=environment())
    return time.monotonic() - started


def run_broken(words: list[str], made: Path, times: int, seconds: float, seed: int) -> None:
    """Killed so many times, each within `seconds`; then left alone."""

    def resumed() -> list[str]:
        return [*words, *(["--resume"] if made.exists() else [])]

    rng = random.Random(seed)
    for _ in range(times):
        process = subprocess.Popen(
            resumed(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        time.sleep(rng.uniform(0.2, 0.8) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    end = subprocess.run(resumed(), capture_output=True, text=True, env=environment())
    assert end.returncode == 0, end.stderr


@pytest.mark.slow
def test_killed_five_times_and_resumed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    seconds = run_whole(command(whole))
    run_broken(command(broken), broken / "runs" / "resnet20-digits-x", 5, seconds, seed=5)
    expected, met = journal(whole), journal(broken)
    assert sorted(map(str, met)) == sorted(map(str, expected))
    done = [e["trial"] for e in met if e["event"] == "trial" and e["state"] == "DONE"]
    assert done == sorted(set(done)) == list(range(6))


@pytest.mark.slow
def test_a_chain_killed_twice_and_resumed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    teacher = [*_words("teacher", whole)]
    at = teacher.index("--suffix")
    teacher = [*teacher[:at], *teacher[at + 4 :]]  # neither suffix nor runs
    run_whole(teacher)
    shutil.copytree(whole / "teachers", broken / "teachers")
    seconds = run_whole(chain(whole))
    run_broken(chain(broken), broken / "runs" / "resnet20-digits-x", 2, seconds, seed=3)
    assert journal(broken) == journal(whole)
    assert [event["link"] for event in journal(broken) if event["event"] == "stage"] == [0, 1, 2, 3]
