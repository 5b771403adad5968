"""How far a training is: one line per epoch on stderr, rewritten in place on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO

from esnac.report.progress import clock_text


class Epoch(Protocol):
    """What is shown of an epoch: its number from 0 and the validation accuracy after it."""

    @property
    def epoch(self) -> int: ...

    @property
    def accuracy(self) -> float: ...


class EpochProgress:
    """A context manager; `update` after every epoch of a training of `epochs` epochs (or None)."""

    def __init__(self, title: str, epochs: int | None, stream: TextIO | None = None) -> None:
        self._title = title
        self._epochs = epochs
        self._stream = stream if stream is not None else sys.stderr
        self._first: int | None = None
        self._started = 0.0
        self._open = False

    def __enter__(self) -> EpochProgress:
        self._started = time.monotonic()
        return self

    def update(self, record: Epoch) -> None:
        done = record.epoch + 1
        if self._first is None:  # a resumed training does not start at epoch 0
            self._first = done - 1
        line = f"{self._title}: epoch {done}"
        line += "" if self._epochs is None else f"/{self._epochs}"
        line += f", validation accuracy {100 * record.accuracy:.2f} %"
        if self._epochs is not None:
            pace = (time.monotonic() - self._started) / (done - self._first)
            line += f", {clock_text(pace * (self._epochs - done))} left"
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[2K{line}")
            self._open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
