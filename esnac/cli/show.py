"""`esnac show RUN [TRIAL]`: one run, or one of its trials, from its folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esnac.cli import options

if TYPE_CHECKING:
    from esnac.report.summary import Finalist, RunSummary
    from esnac.runs import Run

BEST = 10


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "show",
        help="one run, or one trial of it",
        description="Print a run's settings, counts and best trials, or one trial's history.",
    )
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument("trial", metavar="TRIAL", nargs="?", type=int, help="number of a trial")
    options.add_folders(parser, "runs")
    parser.add_argument(
        "--svg",
        metavar="FILE",
        type=Path,
        help="draw the trial's student (without TRIAL: the best finalist) into FILE",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import paths, runs
    from esnac.report.summary import summarise

    folder = runs.find_run(paths.runs_folder(args.runs), args.name)
    opened = runs.Run.open(folder)
    events = opened.events()
    summary = summarise(events, opened.name, folder)
    if args.trial is None:
        print(_run_text(opened, summary))
    else:
        print(_trial_text(summary, args.trial, events))
    if args.svg is not None:
        _draw(_architecture(opened, summary, args.trial), args.svg)
    return 0


def _run_text(opened: Run, summary: RunSummary) -> str:
    from esnac.report import tables

    parts = [f"{summary.run}\n{tables.status(summary)}", _settings_text(opened.settings)]
    states = Counter(trial.state for trial in summary.trials)
    counts = ", ".join(f"{states[state]} {state}" for state in sorted(states)) or "none yet"
    reasons = Counter(
        trial.reason or "no reason given" for trial in summary.trials if trial.state == "FAILED"
    )
    failures = [f"  failed ({n}): {reason}" for reason, n in reasons.most_common(5)]
    if summary.searched:
        parts.append("\n".join([f"trials: {counts}", *failures]))
    best = summary.best_trials()[:BEST]
    if best:
        table = tables.trial_table(best)
        parts.append(f"best trials (validation)\n{table}")
    if any(finalist.stages for finalist in summary.finalists):
        table = tables.columns(tables.STAGE_HEADER, tables.stage_rows(summary.finalists))
        parts.append(f"stages of the finalists (test)\n{table}")
    parts += [text for text in map(_details, summary.finalists) if text]
    if summary.failures:
        parts.append("\n".join(map(tables.failed, summary.failures)))
    return "\n\n".join(parts)


def _details(finalist: Finalist) -> str:
    """What the stages of a finalist told of themselves."""
    from esnac.report.details import details_text

    told = [
        (stage.get("stage"), details_text(stage.get("details") or {})) for stage in finalist.stages
    ]
    return "\n\n".join(f"finalist {finalist.index}, {name}\n{text}" for name, text in told if text)


def _settings_text(settings: Mapping[str, Any]) -> str:
    """One line for all plain settings, and one for each table of them."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    lines = [f"settings: {_pairs(plain)}"] if plain else []
    tables = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    return "\n".join(lines + [f"  {key}: {_pairs(value)}" for key, value in tables.items()])


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}=({_pairs(value)})" if isinstance(value, Mapping) else f"{key}={json.dumps(value)}"
        for key, value in values.items()
    )


def _trial_text(summary: RunSummary, number: int, events: list[dict[str, Any]]) -> str:
    from esnac.errors import RunError
    from esnac.report import tables

    trial = next((trial for trial in summary.trials if trial.trial == number), None)
    if trial is None:
        numbers = [trial.trial for trial in summary.trials]
        known = f"It has trials {numbers[0]} to {numbers[-1]}." if numbers else "It has none yet."
        raise RunError(f"{summary.run} has no trial {number}. {known}")
    own = [event for event in events if event["event"] == "trial" and event["trial"] == number]
    proposed = own[0]
    lines = [f"{summary.run}, trial {number}: {trial.state}"]
    lines += [f"  {event['state']:<8}  {event.get('time', '')}" for event in own]
    lines += ["moves"]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in proposed.get("moves", {}).items()]
    lines += [
        f"predicted: {tables.count(proposed.get('params'))} parameters, "
        f"{tables.macs(proposed.get('macs'))} MACs, ratio {tables.fraction(proposed.get('ratio'))}"
    ]
    if trial.state == "FAILED":
        lines += [f"failed: {trial.reason or 'no reason given'}"]
    elif trial.state == "DONE":
        table = tables.trial_table([trial])
        lines += ["outcome (validation)", table]
    for finalist in summary.finalists:
        if finalist.trial == number:
            lines += [f"finalist {finalist.index}"]
            lines += [f"  {stage.get('stage')}: {_stage_text(stage)}" for stage in finalist.stages]
            lines += [text for text in [_details(finalist)] if text]
    lines += [tables.failed(failure) for failure in summary.failures if failure.trial == number]
    return "\n".join(lines)


def _stage_text(stage: Mapping[str, Any]) -> str:
    from esnac.report import tables

    accuracy, f = tables.percent(stage.get("accuracy")), tables.fraction(stage.get("f"))
    params = tables.count(stage.get("params"))
    size = f", {tables.size(stage['bytes'])}" if stage.get("bytes") else ""
    return f"test accuracy {accuracy}, f {f}, {params} parameters{size}, {stage.get('path')}"


def _architecture(opened: Run, summary: RunSummary, number: int | None) -> Path:
    """The file that describes the student to draw. Raises RunError when there is none."""
    from esnac.errors import RunError

    if number is None:
        best = summary.best_finalist()
        if best is None:
            raise RunError(f"{summary.run} has no trained finalist to draw yet. Name a TRIAL.")
        folder = Path(best.path) if best.path else opened.finalist_folder(best.index)
    else:
        folder = opened.trial_folder(number)
    found = sorted(folder.rglob("architecture.json"), key=lambda path: len(path.parts))
    if not found:
        raise RunError(f"No architecture.json in {folder}: this student was not kept.")
    return found[0]


def _draw(architecture: Path, file: Path) -> None:
    from esnac.errors import RunError
    from esnac.files import write_text
    from esnac.graphs import draw
    from esnac.graphs.arch_graph import ArchGraph

    try:
        content = architecture.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"Cannot read {architecture}: {error}.") from None
    write_text(file, draw.draw(ArchGraph.from_json(content, architecture)))
    print(f"drawn: {file}")
