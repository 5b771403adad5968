"""The same summaries in each format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest

from esnac.report import tables
from esnac.report.summary import EpochFigures, Failure, Finalist, RunSummary, TeacherFigures, Trial
from esnac.report.surrogate import SurrogateFigures

FINALISTS = [
    Finalist(
        index=0,
        trial=12,
        params=2_849_000,
        macs=164_000_000,
        ratio=0.8664,
        times=7.4864,
        accuracy_search=0.7012,
        accuracy=0.7547,
        f_search=0.9102,
        f=0.9417,
        path="/runs/a/finalists/0",
        stages=[{"stage": "train", "accuracy": 0.7547, "validation_accuracy": 0.76}],
    ),
    Finalist(1, 3, 27_310, 900, 0.9987, 781.0, 0.5, None, 0.6, None, None),
]
SUMMARY = RunSummary(
    run="resnet34-cifar100-0",
    network="resnet34",
    dataset="cifar100",
    seed=127,
    engine="esnac",
    objective="f",
    teacher=TeacherFigures(0.7871, 21_328_292, 1_160_000_000),
    evaluations=160,
    best_f=0.9102,
    epochs=EpochFigures(880, 1600),
    surrogate=SurrogateFigures(144, 0.8317, 0.875, 0.6111),
    finalists=FINALISTS,
    trials=[
        Trial(12, "DONE", 2, 2_849_000, 164_000_000, 0.8664, 7.4864, 0.7012, 0.9102, 61.25),
        Trial(13, "FAILED", reason="loss is not finite"),
    ],
    ended=True,
)
SEARCHING = dataclasses.replace(SUMMARY, run="b", finalists=[], ended=False)
#: 880 of 1,600 epochs.
SAVED = "880 epochs (45 % saved by early stopping)"
EMPTY = RunSummary(
    *("c", None, None, None, None, None, TeacherFigures(), 0, None, None),
    *(SurrogateFigures(), [], [], False),
)


@pytest.mark.parametrize(
    ("number", "params", "macs"),
    [
        (2_849_000, "2.85 M", "2.85 M"),
        (1_259_999, "1.26 M", "1.26 M"),
        (180_000, "0.18 M", "180.00 k"),
        (27_310, "27.31 k", "27.31 k"),
        (532, "532", "532"),
        (0, "0", "0"),
        (1_160_000_000, "1.16 G", "1.16 G"),
        (None, "-", "-"),
    ],
)
def test_counts(number: int | None, params: str, macs: str) -> None:
    assert tables.count(number) == params
    assert tables.macs(number) == macs


def test_sizes_of_files() -> None:
    assert [tables.size(n) for n in (1_106_448, 27_310, 532, None)] == [
        *("1.11 MB", "27.31 kB", "532 B", "-"),
    ]


def test_figures_as_published() -> None:
    assert tables.percent(0.7547) == "75.47 %"
    assert tables.fraction(0.94172) == "0.9417"
    assert tables.factor(8.8968) == "8.90x"


def test_text_has_the_published_columns_then_the_finalists() -> None:
    lines = tables.render([SUMMARY], "text").splitlines()
    row = "resnet34-cifar100-0  resnet34   75.47 %   2.85 M  0.8664  7.49x  0.9417"
    assert lines[0].split()[:7] == [
        "run",
        "teacher",
        "accuracy",
        "#params",
        "ratio",
        "times",
        "f(x)",
    ]
    assert lines[1].startswith(row)
    assert lines[1].endswith("78.71 %          21.33 M  finalist 0")
    assert len(lines[0]) == len(lines[1]) - len("finalist 0") + len("student")
    first = next(i for i, line in enumerate(lines) if line.startswith("index"))
    cells = ["0", "12", "2.85", "M", "164.00", "M", "0.8664", "7.49x"]
    assert lines[first + 1].split() == [*cells, "70.12", "%", "75.47", "%", "0.9102", "0.9417"]
    assert lines[first + 2].split()[-6:] == ["781.00x", "50.00", "%", "-", "0.6000", "-"]
    assert len({line.index("M") for line in lines[first : first + 2]}) == 2
    assert "seed 127" in lines[5]
    assert "160 evaluations, 1 failed" in lines[5]
    assert lines[5].endswith("1 of 2 finalists trained.")


def test_a_run_without_finalists_shows_its_best_trial() -> None:
    lines = tables.render([SEARCHING], "text").splitlines()
    assert "70.12 %   2.85 M  0.8664  7.49x  0.9102" in lines[1]
    assert lines[1].endswith("trial 12 so far (validation)")
    assert lines[-1].endswith("no finalists yet.")


@pytest.mark.parametrize("style", tables.FORMATS)
def test_a_run_that_has_hardly_begun(style: str) -> None:
    output = tables.render([EMPTY, SUMMARY], style)
    assert "None" not in output
    if style == "text":
        assert output.splitlines()[1].split() == ["c", *["-"] * 9]
        assert "no teacher yet; 0 evaluations; no finalists yet." in output


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_a_chain_has_a_row_per_stage(style: str) -> None:
    assert "bytes" not in tables.render([SUMMARY], style), "one stage is in the finalists' table"
    later = {"stage": "quantize-lsq", "params": 27_310, "macs": 900, "bytes": 7_000, "f": 0.94}
    first = dataclasses.replace(FINALISTS[0], stages=[*FINALISTS[0].stages, later])
    output = tables.render([dataclasses.replace(SUMMARY, finalists=[first])], style)
    rows = [line.replace("|", " ").split() for line in output.splitlines()][-2:]
    assert rows == [
        ["0", "train", "-", "-", "-", "75.47", "%", "-"],  # of an older run
        ["0", "quantize-lsq", "27.31", "k", "900", "7.00", "kB", "-", "0.9400"],
    ]


def test_a_network_that_was_given() -> None:
    finalist = dataclasses.replace(FINALISTS[0], trial=None, accuracy_search=None, f_search=None)
    failures = [Failure(0, None, "prune-agp", "no layer")]
    given = dataclasses.replace(
        EMPTY, teacher=SUMMARY.teacher, finalists=[finalist], failures=failures, ended=True
    )
    output = tables.render([given], "text")
    assert "; no search;" in output
    assert "Finalist 0 failed in prune-agp: no layer" in output
    assert "None" not in output


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_a_failure_is_a_line_below_the_table(style: str) -> None:
    lost = dataclasses.replace(SUMMARY, failures=[Failure(1, 3, "train", "loss is\nnot finite")])
    output = tables.render([lost, EMPTY], style)
    lines = output.splitlines()
    below = lines.index("Finalist 1 (trial 3) failed in train: loss is not finite")
    assert lines[below - 1] == ""
    assert "781.00x" in lines[below - 2], "the last row of the finalists' table"
    assert "1 of 2 finalists trained, 1 failed." in output
    assert "failed in" not in tables.render([SUMMARY], style)


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (
            SurrogateFigures(144, 0.8317, 0.875, 0.6111),
            "surrogate: rank correlation 0.83, 90 % intervals held 88 %, 61 % of steps improved",
        ),
        (SurrogateFigures(2, None, 1.0, None), "surrogate: 90 % intervals held 100 %"),
        (SurrogateFigures(hit_rate=0.0), "0 % of steps improved"),
        (SurrogateFigures(8), ""),
        (SurrogateFigures(), ""),
    ],
)
def test_how_good_the_surrogate_was(figures: SurrogateFigures, sentence: str) -> None:
    assert tables.surrogate(figures) == sentence
    line = tables.status(dataclasses.replace(SUMMARY, surrogate=figures))
    told = f"; {sentence}; " if sentence else "; "
    assert line.endswith(f"best f in search 0.9102, {SAVED}{told}1 of 2 finalists trained.")


def test_the_status_of_a_pareto_search_has_its_hypervolume() -> None:
    pareto = dataclasses.replace(SUMMARY, front=frozenset({3, 12}), hypervolume=0.81234)
    assert "hypervolume 0.8123 of 2 students on the front" in tables.status(pareto)
    assert "hypervolume" not in tables.status(SUMMARY)


def test_trials_show_the_measures_that_were_asked_for() -> None:
    trial = SUMMARY.trials[0]
    assert "latency" not in tables.trial_table([trial])
    known = dataclasses.replace(trial, latency=1.2378, bytes=11_396_000)
    header, row, other = tables.trial_table([known, trial]).splitlines()
    assert header.split()[-2:] == ["bytes", "latency"]
    assert row.endswith("11.40 MB  1.24 ms")
    assert other.split()[-2:] == ["-", "-"]


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_the_surrogate_is_part_of_the_status(style: str) -> None:
    assert "; surrogate: rank correlation 0.83, " in tables.render([SUMMARY], style)
    assert "surrogate" not in tables.render([EMPTY], style)


@pytest.mark.parametrize("style", ["csv", "json"])
def test_a_failure_leaves_what_programs_read_alone(style: str) -> None:
    lost = dataclasses.replace(SUMMARY, failures=[Failure(1, 3, "train", "loss is not finite")])
    assert tables.render([lost], style) == tables.render([SUMMARY], style)


def test_lines_never_wrap() -> None:
    long = dataclasses.replace(SUMMARY, run="r" * 200)
    lines = tables.render([long], "text").splitlines()
    assert lines[1].startswith("r" * 200 + "  resnet34")


def test_markdown() -> None:
    odd = dataclasses.replace(SUMMARY, run="a|b")
    lines = tables.render([odd], "markdown").splitlines()
    assert lines[0].startswith("| run | teacher | accuracy | #params | ratio | times | f(x) |")
    assert lines[1] == "| " + " | ".join(["---"] * 10) + " |"
    assert lines[2].startswith("| a\\|b | resnet34 | 75.47 % | 2.85 M | 0.8664 | 7.49x | 0.9417 |")
    assert lines[4] == "### a|b"


def test_csv_has_full_numbers_and_a_row_per_finalist() -> None:
    output = tables.render([SUMMARY, EMPTY], "csv")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["run"] for row in rows] == ["resnet34-cifar100-0"] * 2 + ["c"]
    assert float(rows[0]["accuracy"]) == 0.7547
    assert float(rows[0]["times"]) == 7.4864
    assert rows[0]["teacher_params"] == "21328292"
    assert (rows[0]["surrogate_trials"], rows[0]["surrogate_coverage"]) == ("144", "0.875")
    assert float(rows[1]["surrogate_rank_correlation"]) == 0.8317
    assert (rows[2]["surrogate_trials"], rows[2]["surrogate_hit_rate"]) == ("0", "")
    assert rows[1]["accuracy"] == ""
    assert rows[2]["index"] == ""
    assert rows[2]["evaluations"] == "0"


def test_json_reads_back() -> None:
    content = json.loads(tables.render([SUMMARY, EMPTY], "json"))
    assert content == [SUMMARY.to_plain(), EMPTY.to_plain()]
    assert content[0]["finalists"][0]["accuracy"] == 0.7547
    assert json.loads(tables.render([], "json")) == []
