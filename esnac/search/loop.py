"""The search loop: asks, has the executor evaluate, tells, and records every change of state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from esnac.errors import EsnacError
from esnac.executors import Executor
from esnac.search.searcher import Searcher
from esnac.search.trial import Outcome, Trial

#: Takes journal rows; all rows of one call are written together.
Recorder = Callable[[Sequence[dict[str, Any]]], None]


def search_loop(
    searcher: Searcher,
    executor: Executor[Trial, Outcome],
    record: Recorder,
    progress: Callable[[Searcher], None] = lambda searcher: None,
) -> None:
    """Runs the search to its last step; picks up pending trials and a half-proposed step first.

    Raises EsnacError when every evaluation of a whole step failed before any has succeeded.
    """
    settings = searcher.settings
    progress(searcher)
    _evaluate(searcher, searcher.pending(), executor, record, progress)
    _check_success(searcher)
    while searcher.steps <= settings.steps:
        step = max(searcher.steps - 1, 0)
        missing = settings.batch - sum(trial.step == step for trial in searcher.trials)
        if missing <= 0:
            _record_front(searcher, record)
            step, missing = step + 1, settings.batch
        if step >= settings.steps:
            break
        trials = searcher.ask(missing, step=step)
        if not trials and not searcher.trials:
            raise EsnacError(
                "The search space has no student to propose: widen space.moves or the limits."
            )
        if not trials:
            break
        record([proposed(trial) for trial in trials])
        _evaluate(searcher, trials, executor, record, progress)
        _check_success(searcher)
    _record_front(searcher, record)


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
        row |= {"ratio": trial.ratio, "f": searcher.f(trial)}
    return row | {"seconds": outcome.seconds}


def restore(searcher: Searcher, events: Sequence[dict[str, Any]]) -> None:
    """Replays the trials of a journal into a fresh searcher."""
    searcher.fronts.update(event["step"] for event in events if event["event"] == "front")
    rows = [event for event in events if event["event"] == "trial"]
    ends = {row["trial"]: row for row in rows if row["state"] != "PROPOSED"}
    for row in rows:
        if row["state"] == "PROPOSED":
            end = ends.get(row["trial"])
            outcome = None if end is None else _outcome(end)
            searcher.restore(Trial.from_plain(row), outcome)


def _outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(row.get("accuracy"), row.get("reason"), row["seconds"])


def _evaluate(
    searcher: Searcher,
    trials: Sequence[Trial],
    executor: Executor[Trial, Outcome],
    record: Recorder,
    progress: Callable[[Searcher], None],
) -> None:
    for trial in trials:
        executor.submit(trial)
    waiting = len(trials)
    while waiting:
        for trial, outcome in executor.collect():
            searcher.tell(trial, outcome)
            record([finished(searcher, trial)])
            progress(searcher)
            waiting -= 1


def _record_front(searcher: Searcher, record: Recorder) -> None:
    """Once for each step of a pareto search, also if it was interrupted in between."""
    step = searcher.steps - 1
    if searcher.objective.settings.kind == "pareto" and step >= 0 and step not in searcher.fronts:
        record([front(searcher, step)])
        searcher.fronts.add(step)


def _check_success(searcher: Searcher) -> None:
    outcomes = list(searcher.outcomes.values())
    if outcomes and all(outcome.state == "FAILED" for outcome in outcomes):
        raise EsnacError(
            f"All {len(outcomes)} evaluations failed; the first said: {outcomes[0].reason}"
        )
