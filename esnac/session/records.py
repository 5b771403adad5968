"""What a run's journal says of its start: network, teacher, finalists and their chain of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esnac.errors import RunError
from esnac.graphs.cost import cost
from esnac.preparation import Teacher
from esnac.runs import Run
from esnac.search.settings import RunSettings
from esnac.session._base import Session
from esnac.stages.pipeline import check_order, links, resolve
from esnac.stages.teacher import versions


def record_start(session: Session, *, searches: bool = True) -> None:
    """The journal's first lines, unless they are there. Raises RunError for another teacher.

    A run that does not search has neither engine nor objective.
    """
    settings, teacher = session.settings, session.teacher
    spent = cost(teacher.graph)
    rows: list[dict[str, Any]] = [
        {
            "event": "run",
            "network": settings.network,
            "dataset": settings.dataset,
            "seed": settings.seed,
            "engine": settings.search.engine if searches else None,
            "objective": settings.objective.kind if searches else None,
            "epochs": settings.evaluation.epochs if searches else None,
            "versions": versions(),
        },
        {
            "event": "teacher",
            "accuracy": teacher.accuracy,
            "validation_accuracy": teacher.validation_accuracy,
            "params": spent.params,
            "macs": spent.macs,
            "file": None if teacher.file is None else str(teacher.file),
        },
    ]
    there = {event["event"] for event in session.run.events()}
    session.run.append_many([row for row in rows if row["event"] not in there])
    refuse_other_teacher(session.run, teacher)


def recorded_teacher(run: Run) -> dict[str, Any]:
    """The journal's row of the teacher; empty before there is one."""
    return next((event for event in run.events() if event["event"] == "teacher"), {})


def recorded_file(run: Run) -> Path | None:
    """The weights that the run was started with, if a user named them."""
    file = recorded_teacher(run).get("file")
    return None if file is None else Path(file)


def refuse_other_teacher(run: Run, teacher: Teacher) -> None:
    before = recorded_teacher(run)
    now = cost(teacher.graph).params, teacher.validation_accuracy
    if (before["params"], before["validation_accuracy"]) != now:
        raise RunError(
            f"{run.path} was started with another teacher: {before['params']:,} parameters and "
            f"{100 * before['validation_accuracy']:.2f} % on the validation images, against "
            f"{now[0]:,} and {100 * now[1]:.2f} % now. Pass the same --teachers or --teacher."
        )


def searches(run: Run) -> bool | None:
    """Whether the run is a search; None before its first line."""
    row = next((event for event in run.events() if event["event"] == "run"), None)
    return None if row is None else row["engine"] is not None


def finalists(run: Run) -> list[int | None] | None:
    """The finalists' trials, or None while they are not chosen.

    The network of a run that does not search was never a trial: [None].
    """
    rows = [event["trials"] for event in run.events() if event["event"] == "finalists"]
    return rows[-1] if rows else None


def chain(run: Run, settings: RunSettings) -> tuple[dict[str, Any], ...]:
    """The stages after full training, as plain data: those named last."""
    rows = [event["stages"] for event in run.events() if event["event"] == "stages"]
    return resolve(rows[-1] if rows else settings.stages)


def change_chain(run: Run, settings: RunSettings, stages: Sequence[Mapping[str, Any]]) -> None:
    """Records another chain. Raises RunError unless it begins with what is done already."""
    before, wanted = chain(run, settings), resolve(stages)
    rows = (event for event in run.events() if event["event"] == "stage")
    done = max((row.get("link", 0) for row in rows), default=0)
    if before[:done] != wanted[:done]:
        names = ", ".join(link.name for link in links(before[:done]))
        raise RunError(
            f"The finalists of {run.path} went through {names} with other settings: name the whole "
            "chain, beginning as before. For another one, start from a finalist: "
            "esnac compress --weights FOLDER."
        )
    if wanted != before:
        check_order(links(wanted))
        run.append("stages", stages=list(wanted))
