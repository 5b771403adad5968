"""Scalars read back from the event files, over a resume as well."""

from __future__ import annotations

import struct
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from esnac.errors import RunError
from esnac.report.tensorboard import ScalarLog


def done(trial: int, f: float) -> dict[str, Any]:
    figures = {"f": f, "accuracy": 0.5, "ratio": 0.875}
    when = "2026-01-01T00:00:00.000000+00:00"
    return {"event": "trial", "trial": trial, "state": "DONE", "time": when, **figures}


def scalars(folder: Path) -> list[tuple[float, int, str, float]]:
    """(time, step, tag, value) of every scalar in the folder's event files (TFRecord framing)."""
    from tensorboardX.proto.event_pb2 import Event

    rows = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at + 12 <= len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 12 + size + 4
            rows += [
                (event.wall_time, event.step, value.tag, value.simple_value)
                for value in event.summary.value
            ]
    return rows


def test_scalars_by_number_of_evaluations(tmp_path: Path) -> None:
    with ScalarLog(tmp_path / "tensorboard") as log:
        log.trial({"event": "trial", "trial": 0, "state": "PROPOSED", "ratio": 0.1})
        log.trial(done(1, 0.5))
        log.trial({"event": "trial", "trial": 0, "state": "FAILED", "reason": "?"})
        log.trial(done(2, 0.25))
        deadline = time.monotonic() + 20
        while len(scalars(tmp_path / "tensorboard")) < 8:
            assert time.monotonic() < deadline, "scalars reach the disk while the search goes on"
            time.sleep(0.1)
    rows = scalars(tmp_path / "tensorboard")
    assert [row[1:] for row in rows if row[2] == "trial/f"] == [
        (1, "trial/f", 0.5),
        (2, "trial/f", 0.25),
    ]
    best = [(step, value) for _, step, tag, value in rows if tag == "search/best_f"]
    assert best == [(1, 0.5), (2, 0.5)]
    assert {row[2] for row in rows} == {
        "trial/f",
        "trial/accuracy",
        "trial/ratio",
        "search/best_f",
    }
    assert rows[0][0] == datetime.fromisoformat(done(0, 0)["time"]).timestamp()


def test_a_resumed_run_shows_each_evaluation_once(tmp_path: Path) -> None:
    with ScalarLog(tmp_path) as log:
        log.trial(done(0, 0.5))
        log.trial(done(1, 0.25))  # and the process died before the next was logged
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "events.out.tfevents.1.host")  # file names tell whole seconds apart
    with ScalarLog(tmp_path, past=[done(0, 0.5), done(1, 0.25), done(2, 0.75)]) as log:
        log.trial(done(3, 0.125))
    values = [(step, value) for _, step, tag, value in scalars(tmp_path) if tag == "trial/f"]
    assert values == [(1, 0.5), (2, 0.25), (3, 0.75), (4, 0.125)]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="TensorBoard"):
        ScalarLog(tmp_path / "file" / "tensorboard")
