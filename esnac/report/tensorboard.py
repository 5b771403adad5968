"""A run's trials as TensorBoard scalars, written through tensorboardX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from esnac.errors import RunError

TAGS = ("f", "accuracy", "ratio")

#: tensorboardX writes from a thread of its own, so its flush() would not wait for what is queued.
FLUSH_SECONDS = 2


class ScalarLog:
    """`trial/f`, `trial/accuracy`, `trial/ratio` and `search/best_f` by number of evaluations.

    The journal is the truth: on opening, event files of earlier processes are replaced by the
    scalars of the `past` events, so that a resumed run shows each evaluation exactly once.
    """

    def __init__(self, folder: Path, past: Iterable[Mapping[str, Any]] = ()) -> None:
        from tensorboardX import SummaryWriter

        self.evaluations = 0
        self.best_f: float | None = None
        try:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        except OSError as error:
            raise RunError(f"Cannot write TensorBoard scalars to {folder}: {error}.") from None
        for event in past:
            self.trial(event)

    def trial(self, event: Mapping[str, Any]) -> None:
        """Log a journal event; all but a trial that is DONE are passed over."""
        if event.get("event") != "trial" or event.get("state") != "DONE":
            return
        self.evaluations += 1
        when = datetime.fromisoformat(event["time"]).timestamp() if event.get("time") else None
        for tag in TAGS:
            if event.get(tag) is not None:
                self._writer.add_scalar(f"trial/{tag}", event[tag], self.evaluations, when)
        if event.get("f") is not None:
            self.best_f = max(event["f"], self.best_f if self.best_f is not None else event["f"])
            self._writer.add_scalar("search/best_f", self.best_f, self.evaluations, when)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
