"""A run in a few figures, from its journal alone.

Accuracies are fractions in [0, 1]; `ratio` is c = 1 - params / teacher's params, `times` is
teacher's params / params = 1 / (1 - c). A finalist's `accuracy` and `f` use the test split, its
`accuracy_search` and `f_search` (before full training) the validation split of the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esnac.objective import compression, reward
from esnac.report.surrogate import SurrogateFigures, surrogate_figures

Event = Mapping[str, Any]


@dataclass(frozen=True)
class TeacherFigures:
    """`accuracy` is on the test split."""

    accuracy: float | None = None
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Finalist:
    """A finalist after its last stage; fields are None where no stage has finished yet.

    `stages` holds each stage's journal fields in order; `path` is the student's folder. `trial` is
    None for a network that was given and not searched.
    """

    index: int
    trial: int | None
    params: int | None
    macs: int | None
    ratio: float | None
    times: float | None
    accuracy_search: float | None
    accuracy: float | None
    f_search: float | None
    f: float | None
    path: str | None
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """A trial in its last state; `accuracy` and `f` on the validation split, `latency` in ms.

    Bytes and latency are None where the search did not ask for them.
    """

    trial: int
    state: str
    step: int | None = None
    params: int | None = None
    macs: int | None = None
    ratio: float | None = None
    times: float | None = None
    accuracy: float | None = None
    f: float | None = None
    seconds: float | None = None
    reason: str | None = None
    stopped_after: int | None = None
    bytes: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class EpochFigures:
    """Epochs that the evaluations took, and that they would have taken without early stopping."""

    spent: int
    planned: int


@dataclass(frozen=True)
class Failure:
    """A finalist's stage that failed and has not succeeded since."""

    index: int
    trial: int | None
    stage: str
    reason: str


@dataclass(frozen=True)
class RunSummary:
    """`evaluations` counts the trials that are DONE; `best_f` is the largest f among those
    that were not stopped early.

    `epochs` is None in a run without results; `front` has the trials that no other dominates and
    `hypervolume` what they dominate (1: all), after the last step of a pareto search.
    """

    run: str
    network: str | None
    dataset: str | None
    seed: int | None
    engine: str | None
    objective: str | None
    teacher: TeacherFigures
    evaluations: int
    best_f: float | None
    epochs: EpochFigures | None
    surrogate: SurrogateFigures
    finalists: list[Finalist]
    trials: list[Trial]
    ended: bool
    failures: list[Failure] = field(default_factory=list)
    front: frozenset[int] = frozenset()
    hypervolume: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """The object of `stat --format json`: all but trials, their front, end and failures."""
        plain = asdict(self)
        for key in ("trials", "front", "hypervolume", "ended", "failures"):
            del plain[key]
        return plain

    @property
    def searched(self) -> bool:
        """False for a network that went through stages as it was given."""
        return self.engine is not None or not self.finalists

    def count(self, state: str) -> int:
        """Trials that are in `state` now."""
        return sum(trial.state == state for trial in self.trials)

    def best_trials(self) -> list[Trial]:
        """Trials whose evaluation went to its end, the best first.

        By accuracy in a search for accuracy, else by f; those of the front of a pareto search lead.
        """
        done = [trial for trial in self.trials if trial.f is not None and not trial.stopped_after]
        merit = _merit(self.objective)
        return sorted(
            done,
            key=lambda trial: (trial.trial not in self.front, -getattr(trial, merit), trial.trial),
        )

    def best_finalist(self) -> Finalist | None:
        """The finalist that is best on the validation split: test data never choose.

        Its c (2 - c) a is compared with a = validation accuracy after the last stage (the
        teacher's is the same for all), or a alone where the search was after accuracy; f of the
        search where a stage measured none.
        """
        finished = [finalist for finalist in self.finalists if finalist.stages]
        measured = all(self._validation(finalist) is not None for finalist in finished)
        key = self._validation if measured else lambda finalist: finalist.f_search
        return max(finished, key=lambda f: (key(f) or 0.0, -f.index), default=None)

    def _validation(self, finalist: Finalist) -> float | None:
        accuracy: float | None = finalist.stages[-1].get("validation_accuracy")
        if accuracy is None or finalist.ratio is None or self.objective == "accuracy":
            return accuracy
        return reward(finalist.ratio, accuracy, 1.0)


def summarise(events: Iterable[Event], run_name: str, folder: Path | None = None) -> RunSummary:
    """What the journal's `events` say; a run may be at any point of its life.

    With the run's `folder`, paths of finalists are absolute, else relative to the run.
    """
    events = list(events)
    header = next((event for event in events if event["event"] == "run"), {})
    teacher = _teacher(events)
    merged = _merged(events)
    trials = _trials(merged, teacher)
    results = [t.f for t in trials if t.f is not None and t.stopped_after is None]
    fronts = [event for event in events if event["event"] == "front"]
    return RunSummary(
        run=run_name,
        network=header.get("network"),
        dataset=header.get("dataset"),
        seed=header.get("seed"),
        engine=header.get("engine"),
        objective=header.get("objective"),
        teacher=teacher,
        evaluations=sum(trial.state == "DONE" for trial in trials),
        best_f=max(results, default=None),
        hypervolume=fronts[-1]["hypervolume"] if fronts else None,
        epochs=_epochs(trials, header.get("epochs")),
        surrogate=surrogate_figures(
            merged, _merit(header.get("objective")), [front["hypervolume"] for front in fronts]
        ),
        finalists=_finalists(events, {t.trial: t for t in trials}, teacher, folder),
        trials=trials,
        ended=bool(events) and events[-1]["event"] == "end",
        failures=_failures(events),
        front=frozenset(fronts[-1]["trials"] if fronts else ()),
    )


def _merit(objective: str | None) -> str:
    """The figure of a trial by which a search compares it with others."""
    return "accuracy" if objective == "accuracy" else "f"


def _epochs(trials: list[Trial], planned: int | None) -> EpochFigures | None:
    done = [trial for trial in trials if trial.state == "DONE"]
    if not done or planned is None:
        return None
    spent = sum(trial.stopped_after or planned for trial in done)
    return EpochFigures(spent, planned * len(done))


def _against(params: int | None, teacher: TeacherFigures) -> tuple[float | None, float | None]:
    """(ratio, times) of a student; (None, None) when a count is not known."""
    if not params or not teacher.params:
        return None, None
    return compression(params, teacher.params), teacher.params / params


def _teacher(events: list[Event]) -> TeacherFigures:
    last = next((event for event in reversed(events) if event["event"] == "teacher"), {})
    return TeacherFigures(last.get("accuracy"), last.get("params"), last.get("macs"))


def _merged(events: list[Event]) -> list[Event]:
    """One row per trial, in order: the keys of its last state over those of its proposal."""
    merged: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "trial":
            merged.setdefault(event["trial"], {}).update(event)
    return [merged[number] for number in sorted(merged)]


def _trials(merged: list[Event], teacher: TeacherFigures) -> list[Trial]:
    rows = []
    for row in merged:
        ratio, times = _against(row.get("params"), teacher)
        keys = ("step", "params", "macs", "bytes", "latency", "accuracy", "f", "seconds", "reason")
        values = {key: row.get(key) for key in (*keys, "stopped_after")}
        rows.append(
            Trial(row["trial"], row["state"], ratio=row.get("ratio", ratio), times=times, **values)
        )
    return rows


def _finalists(
    events: list[Event], trials: Mapping[int, Trial], teacher: TeacherFigures, folder: Path | None
) -> list[Finalist]:
    """One for each trial of the last `finalists` event, with the stages that belong to it."""
    rows, nothing = [], Trial(-1, "PROPOSED")
    for index, number in enumerate(_chosen(events)):
        stages = [
            _stage(event, folder)
            for event in events
            if event["event"] == "stage"
            and (event.get("index"), event.get("trial")) == (index, number)
        ]
        trial = nothing if number is None else trials.get(number, nothing)
        end = stages[-1] if stages else {}
        params = end.get("params", trial.params)
        ratio, times = _against(params, teacher)
        rows.append(
            Finalist(
                index=index,
                trial=number,
                params=params,
                macs=end.get("macs", trial.macs),
                ratio=end.get("ratio", ratio),
                times=times,
                accuracy_search=trial.accuracy,
                accuracy=end.get("accuracy"),
                f_search=trial.f,
                f=end.get("f"),
                path=end.get("path"),
                stages=stages,
            )
        )
    return rows


def _chosen(events: list[Event]) -> list[int | None]:
    """The trials of the last `finalists` event."""
    last = next((event for event in reversed(events) if event["event"] == "finalists"), {})
    return list(last.get("trials", ()))


def _failures(events: list[Event]) -> list[Failure]:
    """The last failure of each stage of a chosen finalist, unless the stage succeeded later."""
    chosen = dict(enumerate(_chosen(events)))
    found: dict[tuple[int, int], Failure] = {}
    for event in events:
        if event["event"] not in ("stage", "failure"):
            continue
        index, trial, link = event["index"], event["trial"], event.get("link", 0)
        found.pop((index, link), None)
        if event["event"] == "failure" and chosen.get(index, -1) == trial:
            found[index, link] = Failure(index, trial, event["stage"], event["reason"])
    return sorted(found.values(), key=lambda failure: failure.index)


def _stage(event: Event, folder: Path | None) -> dict[str, Any]:
    left_out = ("time", "event", "index", "trial")
    stage = {key: value for key, value in event.items() if key not in left_out}
    if folder is not None and stage.get("path"):
        stage["path"] = str(folder / stage["path"])
    return stage
