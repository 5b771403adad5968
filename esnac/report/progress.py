"""How far a search is: a bar on a terminal, plain lines elsewhere; on stderr in either case."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """A context manager; `update` after every trial.

    The time left follows from the pace of this process, so trials replayed from a journal (those
    in the first `update`) count as done but not as fast.
    """

    def __init__(
        self,
        title: str = "search",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._first: int | None = None
        self._last: int | None = None
        self._started = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._started = self._clock()
        if self._stream.isatty():
            self._bar = _make_bar(self._stream)
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.title, total=None, step="-", count="", best="-", left="-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, step: int | str, best_f: float | None) -> None:
        """`done` of `total` evaluations, in `step`; `best_f` is None before the first result."""
        left, best = self._time_left(done, total), f"{best_f:.4f}" if best_f is not None else "-"
        if self._bar is not None:
            shown = {"step": str(step), "count": f"{done}/{total}", "best": best, "left": left}
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, **shown)
        elif done != self._last:  # at most one line per trial
            line = (
                f"{self.title}: step {step}, {done}/{total} evaluations, best f {best}, {left} left"
            )
            print(line, file=self._stream, flush=True)
        self._last = done

    def _time_left(self, done: int, total: int) -> str:
        if self._first is None:
            self._first = done
        fresh = done - self._first
        if done >= total:
            return "0:00"
        if fresh <= 0:
            return "?"
        return clock_text((self._clock() - self._started) / fresh * (total - done))


def clock_text(seconds: float) -> str:
    """`1:02` or `3:04:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _make_bar(stream: TextIO) -> Any:
    """A rich bar, or None on a terminal that cannot move its cursor."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=stream)
    if console.is_dumb_terminal:
        return None
    return Progress(
        TextColumn("{task.description}: step {task.fields[step]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]}  best f {task.fields[best]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]} left"),
        console=console,
        refresh_per_second=2,
        redirect_stdout=False,  # what others print to stdout stays there
    )
