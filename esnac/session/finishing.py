"""The finalists' stages, from wherever the journal says they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from esnac.errors import TrainingError
from esnac.graphs.cost import cost
from esnac.objective import compression, reward
from esnac.report.epochs import EpochProgress
from esnac.session._base import Session
from esnac.session.records import chain, finalists
from esnac.stages._base import StageContext, StageResult, clean
from esnac.stages.full_training import FullTraining
from esnac.stages.pipeline import Link, Report, Step, links, run_here, steps


def finish(session: Session) -> None:
    """Runs what is left of each finalist's chain; raises TrainingError if a link of it failed."""
    run, trials = session.run, finalists(session.run)
    assert trials is not None
    failures: list[str] = []

    def report(step: Step, outcome: StageResult | str) -> None:
        place: dict[str, Any] = {"index": step.index, "trial": trials[step.index]}
        place |= {"stage": step.link.name, "link": step.link.number}
        if isinstance(outcome, str):  # the other finalists may still do well
            run.append("failure", **place, reason=outcome)
            failures.append(f"finalist {step.index} in {step.link.name}: {outcome}")
            return
        run.append("stage", **row(session, outcome) | place)
        clean(step.target)

    _run(session, _left(session, trials), report)
    if failures:
        raise TrainingError(f"{run.path}: stages failed: {'; '.join(failures)}")
    if run.events()[-1]["event"] != "end":
        run.append("end")


def context(session: Session) -> StageContext:
    """What stages get, of finalist 0."""
    settings = session.settings
    return StageContext(
        session.data,
        session.targets,
        session.device,
        settings.seed,
        0,
        settings.finish.training,
        session.teacher.accuracy,
    )


def row(session: Session, result: StageResult) -> dict[str, Any]:
    """The figures of a `stage` row of the journal."""
    ratio = compression(result.params, cost(session.teacher.graph).params)
    return result.to_plain() | {
        "path": result.path.relative_to(session.run.path).as_posix(),
        "ratio": ratio,
        "f": reward(ratio, result.accuracy, session.teacher.accuracy),
    }


def _left(session: Session, trials: Sequence[int | None]) -> list[list[Step]]:
    """Each finalist's steps that are not in the journal; tidies up after those that are."""
    run, training = session.run, session.settings.finish
    whole = [Link(0, "train", FullTraining(training.training, training.from_scratch))]
    whole += links(chain(run, session.settings))
    rows = [event for event in run.events() if event["event"] == "stage"]
    found = []
    for index, trial in enumerate(trials):
        finalist = run.finalist_folder(index)
        done = {row.get("link", 0) for row in rows if row["index"] == index}
        for link in whole:
            if link.number in done:
                clean(link.folder(finalist))
        source = finalist if trial is None else run.trial_folder(trial)
        found.append(steps(index, whole, source, finalist, done))
    return found


def _run(session: Session, chains: Sequence[Sequence[Step]], report: Report) -> None:
    settings, teacher, ready = session.settings, session.teacher, context(session)
    if session.cluster is not None:
        from esnac.stages.remote import Workshop, run_stages

        run_stages(
            chains,
            Workshop.of(ready, teacher.graph, teacher.weights, settings.evaluation.precision),
            session.cluster,
            report,
            retries=settings.search.retries,
            together=settings.finish.workers,
            in_order=settings.search.mode == "synchronous",
        )
        return

    @contextmanager
    def watched(step: Step) -> Iterator[StageContext]:
        title, epochs = f"finalist {step.index + 1} of {len(chains)}", None
        if step.link.number:  # which may train as it likes
            title += f", {step.link.name}"
        else:
            epochs = settings.finish.training.epochs
        with EpochProgress(title, epochs) as progress:
            yield replace(ready, index=step.index, on_epoch=progress.update)

    run_here(chains, watched, report)
