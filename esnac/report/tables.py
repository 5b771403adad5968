"""Summaries of runs as text, Markdown, CSV or JSON.

Text and Markdown print accuracies as percent; CSV and JSON hold fractions and full numbers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esnac.report.summary import Failure, Finalist, RunSummary, Trial
from esnac.report.surrogate import SurrogateFigures

Rows = Sequence[Sequence[str]]
Renderer = Callable[[Sequence[str], Rows], str]

RUN_HEADER: tuple[str, ...] = ("run", "teacher", "accuracy", "#params", "ratio", "times", "f(x)")
RUN_HEADER += ("teacher accuracy", "teacher #params", "student")
FINALIST_HEADER: tuple[str, ...] = ("index", "trial", "#params", "MACs", "ratio", "times")
FINALIST_HEADER += ("accuracy before", "accuracy after", "f before", "f after")
TRIAL_HEADER = ("trial", "step", "#params", "MACs", "ratio", "times", "accuracy", "f", "seconds")
STAGE_HEADER = ("finalist", "stage", "#params", "MACs", "bytes", "accuracy", "f")
CSV_HEADER: tuple[str, ...] = (
    "run",
    "network",
    "dataset",
    "seed",
    "engine",
    "objective",
    "teacher_accuracy",
    "teacher_params",
)
CSV_HEADER += ("teacher_macs", "evaluations", "best_f", "epochs_spent", "epochs_planned")
CSV_HEADER += ("surrogate_trials", "surrogate_rank_correlation", "surrogate_coverage")
CSV_HEADER += ("surrogate_hit_rate", "index", "trial", "params", "macs", "ratio")
CSV_HEADER += ("times", "accuracy_search", "accuracy", "f_search", "f", "path")

NOTHING = "-"


def render(summaries: Sequence[RunSummary], style: str) -> str:
    """All runs in one of `FORMATS`, without a newline at the end."""
    return FORMATS[style](summaries)


def text(summaries: Sequence[RunSummary]) -> str:
    """Aligned columns that never wrap: the published columns, then each run's finalists."""
    return _document(summaries, columns, "{}")


def markdown(summaries: Sequence[RunSummary]) -> str:
    return _document(summaries, markdown_table, "### {}")


def to_json(summaries: Sequence[RunSummary]) -> str:
    return json.dumps([summary.to_plain() for summary in summaries], indent=1)


def to_csv(summaries: Sequence[RunSummary]) -> str:
    """A row per finalist; a run without finalists has one row that ends in empty cells."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_HEADER, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        plain = summary.to_plain()
        finalists = plain.pop("finalists")
        for group in ("teacher", "surrogate", "epochs"):
            plain |= {f"{group}_{key}": value for key, value in (plain.pop(group) or {}).items()}
        for finalist in finalists or [{}]:
            writer.writerow(plain | finalist)
    return buffer.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Sequence[RunSummary]], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": to_csv,
    "json": to_json,
}


def columns(header: Sequence[str], rows: Rows) -> str:
    """Plain text: the first column to the left, numbers to the right, two spaces between."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    left = [not any(_numeric(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in table
    )


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    table = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table
    )


def trial_table(trials: Sequence[Trial]) -> str:
    """Aligned columns; bytes and latency where the search asked for them."""
    further = [name for name in _FURTHER if any(getattr(t, name) is not None for t in trials)]
    rows = [
        [
            str(trial.trial),
            NOTHING if trial.step is None else str(trial.step),
            count(trial.params),
            macs(trial.macs),
            fraction(trial.ratio),
            factor(trial.times),
            percent(trial.accuracy),
            fraction(trial.f),
            NOTHING if trial.seconds is None else f"{trial.seconds:.1f}",
            *(_FURTHER[name](getattr(trial, name)) for name in further),
        ]
        for trial in trials
    ]
    return columns([*TRIAL_HEADER, *further], rows)


def stage_rows(finalists: Sequence[Finalist]) -> list[list[str]]:
    """Rows under STAGE_HEADER: every stage of every finalist."""
    return [
        [
            str(finalist.index),
            stage.get("stage") or NOTHING,
            count(stage.get("params")),
            macs(stage.get("macs")),
            size(stage.get("bytes")),
            percent(stage.get("accuracy")),
            fraction(stage.get("f")),
        ]
        for finalist in finalists
        for stage in finalist.stages
    ]


def count(number: int | None) -> str:
    """A number of parameters: `1.26 M`, `0.18 M`, `27.31 k`, `532`."""
    return _scaled(number, 0.1)


def macs(number: int | None) -> str:
    """Multiply-accumulates of one image: `1.16 G`, `41.22 M`."""
    return _scaled(number, 1.0)


def size(number: int | None) -> str:
    """A file of so many bytes: `1.09 MB`, `27.31 kB` (10^6 and 10^3)."""
    text = _scaled(number, 1.0)
    return text if number is None else f"{text}{'' if ' ' in text else ' '}B"


def milliseconds(latency: float | None) -> str:
    """`1.24 ms`."""
    return NOTHING if latency is None else f"{latency:.2f} ms"


def percent(accuracy: float | None) -> str:
    """A fraction as `71.64 %`."""
    return NOTHING if accuracy is None else f"{100 * accuracy:.2f} %"


def fraction(value: float | None) -> str:
    """A ratio or f as `0.8876`."""
    return NOTHING if value is None else f"{value:.4f}"


def factor(times: float | None) -> str:
    """`8.90x`."""
    return NOTHING if times is None else f"{times:.2f}x"


def _document(summaries: Sequence[RunSummary], table: Renderer, heading: str) -> str:
    if not summaries:
        return "No runs."
    parts = [table(RUN_HEADER, [_run_row(summary) for summary in summaries])]
    for summary in summaries:
        parts.append(heading.format(summary.run))
        parts.append(status(summary))
        if summary.finalists:
            parts.append(table(FINALIST_HEADER, [_finalist_row(row) for row in summary.finalists]))
        if any(len(finalist.stages) > 1 for finalist in summary.finalists):
            parts.append(table(STAGE_HEADER, stage_rows(summary.finalists)))
        parts += map(failed, summary.failures)
    return "\n\n".join(parts)


def failed(failure: Failure) -> str:
    """`Finalist 0 (trial 12) failed in train: loss is not finite`, always one line."""
    reason = " ".join(failure.reason.split())
    trial = "" if failure.trial is None else f" (trial {failure.trial})"
    return f"Finalist {failure.index}{trial} failed in {failure.stage}: {reason}"


def status(summary: RunSummary) -> str:
    """One sentence: what was run, the teacher, how far the search is and how its model did."""
    figures = summary.teacher
    failed, pending = summary.count("FAILED"), summary.count("PROPOSED")
    where = [f"{name} {value}" for name, value in _identity(summary) if value is not None]
    trials = [f"{summary.evaluations} evaluations"] if summary.searched else ["no search"]
    trials += [f"{failed} failed"] if failed else []
    trials += [f"{pending} pending"] if pending else []
    trials += [f"best f in search {fraction(summary.best_f)}"] if summary.best_f is not None else []
    if summary.hypervolume is not None:
        volume = f"hypervolume {fraction(summary.hypervolume)}"
        trials += [f"{volume} of {len(summary.front)} students on the front"]
    epochs = summary.epochs
    if epochs is not None and epochs.spent < epochs.planned:
        saved = 1 - epochs.spent / epochs.planned
        trials += [f"{epochs.spent} epochs ({100 * saved:.0f} % saved by early stopping)"]
    teacher = (
        f"teacher {percent(figures.accuracy)}, {count(figures.params)} parameters, "
        f"{macs(figures.macs)} MACs"
    )
    facts = [", ".join(where), teacher if figures.params else "no teacher yet", ", ".join(trials)]
    facts += [surrogate(summary.surrogate)]
    return "; ".join([fact for fact in facts if fact] + [_stand(summary)]) + "."


def surrogate(figures: SurrogateFigures) -> str:
    """`surrogate: rank correlation 0.83, 90 % intervals held 88 %, 61 % of steps improved`.

    Empty when nothing is known; without the first word when no model expected anything.
    """
    model = []
    if figures.rank_correlation is not None:
        model += [f"rank correlation {figures.rank_correlation:.2f}"]
    if figures.coverage is not None:
        model += [f"90 % intervals held {100 * figures.coverage:.0f} %"]
    improved = []
    if figures.hit_rate is not None:
        improved = [f"{100 * figures.hit_rate:.0f} % of steps improved"]
    return ("surrogate: " if model else "") + ", ".join(model + improved)


def _identity(summary: RunSummary) -> list[tuple[str, object]]:
    names = ("network", "dataset", "seed", "engine", "objective")
    return [(name, getattr(summary, name)) for name in names]


def _stand(summary: RunSummary) -> str:
    finished = sum(bool(finalist.stages) for finalist in summary.finalists)
    lost = len({failure.index for failure in summary.failures})
    if not summary.finalists:
        return "ended without finalists" if summary.ended else "no finalists yet"
    if finished < len(summary.finalists):
        trained = f"{finished} of {len(summary.finalists)} finalists trained"
        return f"{trained}, {lost} failed" if lost else trained
    return f"{finished} finalists" if summary.ended else f"{finished} finalists, not ended"


def _run_row(summary: RunSummary) -> list[str]:
    """The published columns for the best finalist, or the best trial when none is trained."""
    best: Finalist | Trial | None = summary.best_finalist()
    student = NOTHING
    if isinstance(best, Finalist):
        student = f"finalist {best.index}"
    elif summary.best_trials():
        best = summary.best_trials()[0]
        student = f"trial {best.trial} so far (validation)"
    figures = (
        [
            percent(best.accuracy),
            count(best.params),
            fraction(best.ratio),
            factor(best.times),
            fraction(best.f),
        ]
        if best
        else [NOTHING] * 5
    )
    teacher = summary.teacher
    name = summary.network or NOTHING
    return [summary.run, name, *figures, percent(teacher.accuracy), count(teacher.params), student]


def _finalist_row(finalist: Finalist) -> list[str]:
    return [
        str(finalist.index),
        NOTHING if finalist.trial is None else str(finalist.trial),
        count(finalist.params),
        macs(finalist.macs),
        fraction(finalist.ratio),
        factor(finalist.times),
        percent(finalist.accuracy_search),
        percent(finalist.accuracy),
        fraction(finalist.f_search),
        fraction(finalist.f),
    ]


#: How a trial's measures are printed that only some searches have.
_FURTHER: Mapping[str, Callable[[Any], str]] = {"bytes": size, "latency": milliseconds}


def _scaled(number: int | None, least: float) -> str:
    if number is None:
        return NOTHING
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size * (least if unit != "k" else 1.0):
            return f"{number / size:.2f} {unit}"
    return str(number)


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] == "-" and cell[1:2].isdigit())
