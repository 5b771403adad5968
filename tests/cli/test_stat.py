"""`stat` on run folders made here."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from esnac.cli import stat
from esnac.errors import EsnacError, RunError
from esnac.runs import Run


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    stat.add_parser(parser.add_subparsers())
    return stat.run(parser.parse_args(["stat", *arguments]))


def make(root: Path, name: str, finished: bool) -> Path:
    trial: dict[str, Any] = {"event": "trial", "trial": 0}
    figures = {"params": 40_000, "macs": 6_000_000, "ratio": 0.853195}
    with Run.create(root, name, {"seed": 127}) as run:
        header = {"network": "resnet20", "dataset": "digits", "engine": "esnac", "versions": {}}
        run.append("run", seed=127, **header)
        run.append("teacher", accuracy=0.98, validation_accuracy=0.97, params=272_474, macs=1)
        run.append_many([{**trial, "state": "PROPOSED", "step": 1, "moves": {}, **figures}])
        searched = {"accuracy": 0.9, "f": 0.91, "seconds": 2.5, **figures}
        run.append_many([{**trial, "state": "DONE", **searched}])
        if finished:
            run.append("finalists", trials=[0])
            done = {"stage": "train", "accuracy": 0.975, "validation_accuracy": 0.98, "f": 0.9735}
            run.append(
                "stage", index=0, trial=0, path="finalists/0", seconds=9.0, **done, **figures
            )
            run.append("end")
    return root / name


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ESNAC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs", "a", finished=True)
    make(tmp_path / "runs", "b", finished=False)
    return tmp_path / "runs"


def test_text_of_all_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:9] == [
        "a",
        "resnet20",
        "97.50",
        "%",
        "40.00",
        "k",
        "0.8532",
        "6.81x",
        "0.9735",
    ]
    assert lines[1].endswith("finalist 0")
    assert lines[2].endswith("trial 0 so far (validation)")


def test_json_is_the_contract(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a", "--format", "json", "--runs", str(root)) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["run"] == "a"
    assert run["teacher"] == {"accuracy": 0.98, "params": 272_474, "macs": 1}
    (finalist,) = run["finalists"]
    assert Path(finalist["path"]) == root / "a/finalists/0"
    assert finalist["times"] == pytest.approx(6.81185)
    assert (finalist["accuracy_search"], finalist["accuracy"]) == (0.9, 0.975)
    assert (finalist["f_search"], finalist["f"], run["best_f"]) == (0.91, 0.9735, 0.91)
    assert finalist["stages"][0]["stage"] == "train"
    assert run["evaluations"] == 1


def test_how_good_the_surrogate_was(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"params": 40_000, "macs": 6_000_000, "ratio": 0.853195}
    expected = {"accuracy": 0.9, "low": 0.85, "high": 0.95}
    with Run.open(root / "b", write=True) as run:
        run.append(
            "trial", trial=1, state="PROPOSED", step=2, moves={}, expected=expected, **figures
        )
        run.append("trial", trial=1, state="DONE", accuracy=0.92, f=0.93, seconds=2.5, **figures)
    assert call("b", "--format", "json") == 0
    (plain,) = json.loads(capsys.readouterr().out)
    known = {"trials": 1, "rank_correlation": None, "coverage": 1.0, "hit_rate": 1.0}
    assert plain["surrogate"] == known
    assert call("b") == 0
    sentence = "; surrogate: 90 % intervals held 100 %, 100 % of steps improved; "
    assert sentence in capsys.readouterr().out


def test_a_run_by_its_path(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs/b", "--format", "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["run"] == "b"
    assert row["index"] == ""
    assert call(str(root / "b"), "a", "--format", "markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| b |")
    assert lines[3].startswith("| a |")


def test_a_half_written_line_is_no_obstacle(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (root / "b/journal.jsonl").open("a") as file:
        file.write('{"event": "tri')
    assert call("b", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)[0]["evaluations"] == 1


def test_a_failed_finalist_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.open(root / "b", write=True) as run:
        run.append("finalists", trials=[0])
        run.append("failure", index=0, trial=0, stage="train", reason="loss is not finite")
    for form in ("text", "markdown"):
        assert call("b", "--format", form) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "Finalist 0 (trial 0) failed in train: loss is not finite"
    assert call("b", "--format", "json") == 0
    assert "not finite" not in capsys.readouterr().out


def test_an_incomplete_line_is_an_error(root: Path) -> None:
    with (root / "b/journal.jsonl").open("a") as file:
        file.write('{"event": "stage", "index": 0, "trial": 0}\n')
    with pytest.raises(RunError, match=r"journal\.jsonl, line 5 \(stage\) lacks 'stage', 'accur"):
        call("b")


def test_a_damaged_journal_is_an_error(root: Path) -> None:
    journal = root / "b/journal.jsonl"
    journal.write_text("damage\n" + journal.read_text())
    with pytest.raises(RunError, match=r"journal\.jsonl, line 1 is not JSON"):
        call()


def test_names_that_do_not_exist(root: Path) -> None:
    with pytest.raises(RunError, match=r"No run 'c' in .*Runs there: a, b"):
        call("c")
    with pytest.raises(EsnacError, match="there is no folder"):
        call("--runs", "missing")


def test_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ESNAC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert call() == 0
    assert capsys.readouterr().out == f"No runs in {tmp_path / 'runs'}.\n"
    assert call("--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert list(tmp_path.iterdir()) == []
