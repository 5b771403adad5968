"""The journal of a run: one JSON object per line, the truth about what happened.

Each line has `time` (ISO 8601, UTC) and `event`; it is appended in one write, flushed and fsynced,
by the one process that holds the run's lock. Resuming is replaying. A last line without its newline
that does not read is ignored, and cut off when the journal is opened for writing; any other line
that does not read, or lacks keys, is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esnac import files
from esnac.errors import RunError

#: States of a trial: the first opens it, one of the others closes it.
PROPOSED, DONE, FAILED = "PROPOSED", "DONE", "FAILED"

#: Keys without which a line cannot be replayed or reported. Events not named here need none.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "run": ("network", "dataset", "seed", "engine", "versions"),
    "teacher": ("accuracy", "validation_accuracy", "params", "macs"),
    "trial": ("trial", "state"),
    f"trial {PROPOSED}": ("step", "moves", "params", "macs", "ratio"),
    f"trial {DONE}": ("accuracy", "params", "macs", "ratio", "f", "seconds"),
    f"trial {FAILED}": ("reason", "seconds"),
    "front": ("step", "trials", "hypervolume"),
    "finalists": ("trials",),
    "stage": (
        *("index", "trial", "stage", "accuracy", "validation_accuracy", "f"),
        *("params", "macs", "ratio", "path", "seconds"),
    ),
    "stages": ("stages",),
    "failure": ("index", "trial", "stage", "reason"),
}


class Journal:
    """A journal open for writing: a half-written last line is cut off, states are followed.

    Raises RunError when the file cannot be written or is damaged. The caller holds the run's lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._states: dict[int, str] = {}
        self._handle: int | None = None
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            events, good, complete = _read(path)
            if good < os.fstat(self._handle).st_size:
                os.ftruncate(self._handle, good)
            if not complete:
                self._write(b"\n")
            for event in events:
                _advance(self._states, event, str(path))
        except OSError as error:
            self.close()
            raise RunError(f"Cannot open {path} for writing: {files.reason(error)}.") from None
        except BaseException:
            self.close()
            raise

    def append_many(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add several lines (each with `event`) in one write and one fsync.

        A crash in between leaves the first few of them whole. Raises RunError, with the journal
        unchanged, when it cannot be written, an event lacks keys or a trial would go through states
        out of order.
        """
        states, lines = dict(self._states), []
        for event in events:
            _advance(states, event, "New line")
            if missing := _missing(event):
                raise RunError(f"New line: {_kind(event)!r} lacks {missing}.")
            line = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), **event}
            lines.append(json.dumps(line, default=files.json_default, allow_nan=False) + "\n")
        if lines:
            self._write("".join(lines).encode())
        self._states = states

    def close(self) -> None:
        """May be called twice."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def _write(self, content: bytes) -> None:
        assert self._handle is not None
        size = os.fstat(self._handle).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(
                OSError
            ):  # a full disk: leave no half line before the next one
                os.ftruncate(self._handle, size)
            raise RunError(f"Cannot write {self.path}: {files.reason(error)}.") from None


def read(path: Path) -> list[dict[str, Any]]:
    """All events, checked. Raises RunError naming the line of a damaged one."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """Events, the bytes that hold them, and whether the last of them ends in a newline."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0, True
    except OSError as error:
        raise RunError(f"Cannot read {path}: {files.reason(error)}.") from None
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    events: list[dict[str, Any]] = []
    states: dict[int, str] = {}
    good = 0
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            if not line.endswith(b"\n"):  # half-written when the process or the machine died
                break
            raise _damaged(path, number, "is not JSON") from None
        if not isinstance(event, dict):
            raise _damaged(path, number, "is no JSON object")
        if not isinstance(event.get("event"), str):
            raise _damaged(path, number, "has no 'event'")
        _advance(states, event, f"{path}, line {number}")
        if missing := _missing(event):
            raise _damaged(path, number, f"({_kind(event)}) lacks {missing}")
        events.append(event)
        good += len(line)
    return events, good, not events or content[good - 1 : good] == b"\n"


def _kind(event: Mapping[str, Any]) -> str:
    return f"trial {event['state']}" if event["event"] == "trial" else str(event["event"])


def _missing(event: Mapping[str, Any]) -> str:
    """The keys that a line of its kind needs and this one lacks, for people; "" if none."""
    needed = dict.fromkeys((*_KEYS.get(event["event"], ()), *_KEYS.get(_kind(event), ())))
    return ", ".join(repr(key) for key in needed if key not in event)


def _advance(states: dict[int, str], event: Mapping[str, Any], where: str) -> None:
    """Follow a trial's state. Raises RunError unless it is PROPOSED once, then closed once."""
    if event.get("event") != "trial":
        return
    trial, state = event.get("trial"), event.get("state")
    if not isinstance(trial, int) or isinstance(trial, bool) or trial < 0:
        raise RunError(f"{where}: a trial's line needs its number; got trial={trial!r}.")
    if state not in (PROPOSED, DONE, FAILED):
        raise RunError(
            f"{where}: trial {trial} is {state!r}, expected {PROPOSED}, {DONE} or {FAILED}."
        )
    before = states.get(trial)
    if (before is None) != (state == PROPOSED) or before in (DONE, FAILED):
        was = f"it was {before} already" if before else f"it was never {PROPOSED}"
        raise RunError(f"{where}: trial {trial} is {state}, but {was}. Remove the wrong line.")
    states[trial] = state


def _damaged(path: Path, number: int, what: str) -> RunError:
    return RunError(
        f"{path}, line {number} {what}. The journal is damaged: repair or remove that line, "
        "or start again with another --suffix."
    )
