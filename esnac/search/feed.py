"""Hands out the trials of a search, takes their results, and records every change of state.

Whoever evaluates (this process, a cluster, a simulation) asks a feed for the next trial whenever a
worker is free, and reports results in any order.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from esnac.errors import EsnacError
from esnac.search.searcher import Searcher
from esnac.search.trial import Outcome, Trial

#: Takes journal rows; all rows of one call are written together.
Recorder = Callable[[Sequence[dict[str, Any]]], None]


class Asking(Protocol):
    """Trials that are being proposed in the background."""

    def done(self) -> bool: ...

    def result(self) -> list[Trial]: ...


#: Starts a call in the background.
Background = Callable[[Callable[[], list[Trial]]], Asking]


class Feed(Protocol):
    """What evaluates the trials of a search sees of it."""

    @property
    def finished(self) -> bool:
        """Whether no further trial will come and all results are in."""
        ...

    def next(self) -> Trial | None:
        """A trial for a free worker; None if there is none now."""
        ...

    def take(self, trial: Trial, outcome: Outcome) -> None:
        """The result of a trial, whenever it comes."""
        ...

    def settle(self) -> None:
        """Waits for what works in the background, so that all results are told."""
        ...

    def claim(self, trials: Iterable[Trial]) -> None:
        """Pending trials that workers have already, as after a restart of the driver."""
        ...

    def close(self) -> None:
        """Lets go of what works in the background, and waits for its end."""
        ...


class _Base:
    """What both kinds share."""

    def __init__(
        self,
        searcher: Searcher,
        record: Recorder,
        progress: Callable[[Searcher], None] = lambda searcher: None,
    ) -> None:
        """Trials that the searcher is waiting for are handed out first."""
        self._searcher = searcher
        self._record = record
        self._progress = progress
        self._ready = deque(searcher.pending())
        self._running: dict[int, Trial] = {}
        #: Results that are not told yet, by number.
        self._held: dict[int, Outcome] = {}
        self._exhausted = False
        progress(searcher)

    @property
    def finished(self) -> bool:
        return self._exhausted and not self._ready and not self._running

    def claim(self, trials: Iterable[Trial]) -> None:
        for trial in trials:
            self._ready.remove(trial)
            self._running[trial.number] = trial

    def settle(self) -> None:
        """Nothing works in the background."""

    def close(self) -> None:
        """Likewise."""

    def _hand_out(self) -> Trial:
        trial = self._ready.popleft()
        self._running[trial.number] = trial
        return trial

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        del self._running[trial.number]
        self._searcher.tell(trial, outcome)
        self._record([finished(self._searcher, trial)])
        self._progress(self._searcher)

    def _propose(self, trials: Sequence[Trial]) -> None:
        if not trials and not self._searcher.trials:
            raise EsnacError(
                "The search space has no student to propose: widen space.moves or the limits."
            )
        self._exhausted = not trials
        if trials:
            self._record([proposed(trial) for trial in trials])
            self._ready.extend(trials)
        else:
            warnings.warn(
                f"The search ends after {len(self._searcher.trials)} students: its space has no "
                "other.",
                stacklevel=2,
            )

    def _record_front(self, step: int) -> None:
        """Once for each step of a pareto search, also if it was interrupted in between."""
        searcher = self._searcher
        pareto = searcher.objective.settings.kind == "pareto"
        if pareto and step >= 0 and step not in searcher.fronts:
            self._record([front(searcher, step)])
            searcher.fronts.add(step)

    def _check_success(self) -> None:
        outcomes = list(self._searcher.outcomes.values())
        if outcomes and all(outcome.state == "FAILED" for outcome in outcomes):
            raise EsnacError(
                f"All {len(outcomes)} evaluations failed; the first said: {outcomes[0].reason}"
            )


class StepwiseFeed(_Base):
    """Synchronous: a step is proposed when the one before it has ended.

    Results are told and recorded in the order of their numbers, so that the journal does not depend
    on who evaluates them and how fast. Raises EsnacError when every evaluation of a whole step
    failed before any has succeeded.
    """

    def next(self) -> Trial | None:
        if not self._ready and not self._running and not self._exhausted:
            self._next_step()
        return self._hand_out() if self._ready else None

    def take(self, trial: Trial, outcome: Outcome) -> None:
        self._held[trial.number] = outcome
        # Numbers that are not handed out yet are larger than all that are.
        while self._running and (first := min(self._running)) in self._held:
            self._tell(self._running[first], self._held.pop(first))

    def _next_step(self) -> None:
        searcher, settings = self._searcher, self._searcher.settings
        self._check_success()
        step = max(searcher.steps - 1, 0)
        # Steps of a search that was asynchronous before have other sizes: the total is what counts.
        left = settings.steps * settings.batch - len(searcher.trials)
        missing = settings.batch - sum(trial.step == step for trial in searcher.trials)
        if missing <= 0 or left <= 0:
            self._record_front(searcher.steps - 1)
            step, missing = step + 1, settings.batch
        if left <= 0:
            self._exhausted = True
            return
        self._propose(searcher.ask(min(missing, left), step=step))
        if self._exhausted:
            self._record_front(searcher.steps - 1)


class StreamingFeed(_Base):
    """Asynchronous: a free worker gets a trial at once, proposed while others were evaluated.

    Some trials are always kept ready; new ones are asked for in the background, several at a time.
    Results that come in meanwhile wait for that, so the journal says what each proposal knew.
    """

    def __init__(
        self,
        searcher: Searcher,
        record: Recorder,
        progress: Callable[[Searcher], None] = lambda searcher: None,
        *,
        workers: int,
        background: Background | None = None,
    ) -> None:
        super().__init__(searcher, record, progress)
        #: Proposals asked for at a time, and the least number that is kept ready.
        self._batch = max(searcher.settings.batch, workers) // 2 or 1
        self._workers = workers
        self._background = background or _in_a_thread
        self._asking: Asking | None = None

    def next(self) -> Trial | None:
        self._poll()
        missing = self._missing()
        if self._asking is None and missing and len(self._ready) <= self._batch:
            # At first for all workers, then as many as become free while one batch is proposed.
            wanted = self._batch if self._searcher.trials else self._batch + self._workers
            count = min(wanted, missing)
            self._asking = self._background(lambda: self._searcher.ask(count))
            self._poll()
        if not missing and self._asking is None and not self._exhausted:
            self._exhausted = True
        if self.finished:
            self._check_success()
            self._record_front(self._searcher.steps - 1)
        return self._hand_out() if self._ready else None

    def take(self, trial: Trial, outcome: Outcome) -> None:
        self._held[trial.number] = outcome
        self._poll()

    def settle(self) -> None:
        if self._asking is not None:
            self._asking.result()
        self._poll()

    def close(self) -> None:
        if isinstance(self._asking, Future):
            wait([self._asking])

    def _missing(self) -> int:
        settings = self._searcher.settings
        if self._exhausted:
            return 0
        return max(settings.steps * settings.batch - len(self._searcher.trials), 0)

    def _poll(self) -> None:
        if self._asking is not None:
            if not self._asking.done():
                return
            asking, self._asking = self._asking, None
            trials = asking.result()
            if trials:
                self._record_front(trials[0].step - 1)
            self._propose(trials)
        for number in list(self._held):  # as they came
            self._tell(self._running[number], self._held.pop(number))
        if len(self._searcher.outcomes) >= max(self._searcher.settings.batch, self._workers):
            self._check_success()


def _in_a_thread(ask: Callable[[], list[Trial]]) -> Asking:
    """The thread ends with the call, so that none is left of a search that was broken off."""
    threads = ThreadPoolExecutor(1, "proposals")
    asking = threads.submit(ask)
    threads.shutdown(wait=False)
    return asking


def front(searcher: Searcher, step: int) -> dict[str, Any]:
    """The journal row of the archive after a step of a pareto search."""
    trials, volume = searcher.front()
    numbers = [trial.number for trial in trials]
    return {"event": "front", "step": step, "trials": numbers, "hypervolume": volume}


def proposed(trial: Trial) -> dict[str, Any]:
    """The journal row of a new trial."""
    return {"event": "trial", "state": "PROPOSED", **trial.to_plain()}


def finished(searcher: Searcher, trial: Trial) -> dict[str, Any]:
    """The journal row of a trial that is DONE or FAILED."""
    outcome = searcher.outcomes[trial.number]
    row: dict[str, Any] = {"event": "trial", "trial": trial.number, "state": outcome.state}
    if outcome.state == "FAILED":
        row["reason"] = outcome.reason
    else:
        row |= {"accuracy": outcome.accuracy, "params": trial.params, "macs": trial.macs}
        row |= {"ratio": trial.ratio, "f": searcher.f(trial)} | searcher.measures(trial)
    if outcome.stopped_after is not None:
        row["stopped_after"] = outcome.stopped_after
    if outcome.curve:
        row["curve"] = list(outcome.curve)
    return row | {"seconds": outcome.seconds}


def restore(searcher: Searcher, events: Sequence[dict[str, Any]]) -> None:
    """Replays the trials of a journal into a fresh searcher, in the order of its rows."""
    searcher.fronts.update(event["step"] for event in events if event["event"] == "front")
    for row in events:
        if row["event"] == "trial" and row["state"] == "PROPOSED":
            searcher.restore(Trial.from_plain(row))
        elif row["event"] == "trial":
            outcome = Outcome(
                row.get("accuracy"),
                row.get("reason"),
                row["seconds"],
                row.get("stopped_after"),
                tuple(row.get("curve", ())),
            )
            searcher.tell(searcher.trials[row["trial"]], outcome)
