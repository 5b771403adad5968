"""`score` on students saved here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import get_args

import pytest
import torch

from esnac import networks
from esnac.cli import main, score
from esnac.deployment import micronet
from esnac.graphs import student as students
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.runs import Run

GRAPH = ArchGraph((Layer("out", "linear", (INPUT,), (4,), (2,), {"bias": True}, "fc"),), (4,))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A linear layer 4 -> 2: 8 products, 6 + 2 additions, 10 parameters."""
    monkeypatch.delenv("ESNAC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    students.save(tmp_path / "student", StudentNetwork(GRAPH))
    return tmp_path / "student"


def make_run(
    root: Path, dataset: str = "cifar100", accuracy: float = 0.7999, stage: str = "train"
) -> Path:
    figures = {"params": 10, "macs": 8, "ratio": 0.5, "f": 0.9, "seconds": 1.0}
    with Run.create(root, "a", {"seed": 1}) as run:
        run.append("run", network="x", dataset=dataset, engine="esnac", seed=1, versions={})
        run.append("teacher", accuracy=0.9, validation_accuracy=0.9, params=20, macs=16)
        run.append("finalists", trials=[0])
        done = {"stage": stage, "accuracy": accuracy, "validation_accuracy": 0.9, **figures}
        run.append("stage", index=0, trial=0, path="finalists/0", **done)
        students.save(run.finalist_folder(0), StudentNetwork(GRAPH))
    return root / "a"


def call(*arguments: str, task: str = "cifar100") -> int:
    return main(["score", *arguments, "--task", task])


def fails(code: int, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert all(part in err for part in parts), err


def test_choices_are_the_tasks() -> None:
    """They are repeated in the command, which must not import them for --help."""
    assert set(score.TASKS) == set(micronet.TASKS)
    assert get_args(micronet.Accumulation) == score.ACCUMULATIONS


def test_a_student_s_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(folder)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{folder}: accumulation fp32, freebie no"
    assert lines[2].split()[:3] == ["out", "linear", "2"]
    assert lines[3].split()[:4] == ["total", "10", "8", "8"]
    assert f"score       {10 / 36.5e6 + 16 / 10.49e9:.6g} on cifar100" in lines
    assert "accuracy    unknown (--accuracy); an entry needs 80 %" in lines
    assert lines[-2].startswith("published   0.0044  RIAIR, leaderboard (by the official rules)")


def test_the_readme_s_figure_is_labelled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(folder), task="imagenet") == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if "0.178392" in row]
    assert "first README (that README's own arithmetic, not the official rules" in line


def test_below_the_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(folder), "--accuracy", "0.7999") == 0
    out, err = capsys.readouterr()
    assert "accuracy    79.99 %; an entry needs 80 %" in out
    assert err.startswith("esnac: warning: Accuracy 79.99 % is below 80 %, the least for cifar100.")
    assert call(str(folder), "--accuracy", "0.8") == 0
    assert capsys.readouterr().err == ""
    assert call(str(folder), "--perplexity", "36", task="wikitext103") == 0
    out, err = capsys.readouterr()
    assert "perplexity  36; an entry needs at most 35" in out
    assert "Perplexity 36 exceeds 35" in err


@pytest.mark.parametrize("given", ["a", "runs/a/finalists/0"])
def test_a_run_knows_the_accuracy(
    folder: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(folder.parent / "runs")
    assert call(given) == 0
    out, err = capsys.readouterr()
    assert "accuracy    79.99 % on cifar100; an entry needs 80 %" in out
    assert "Accuracy 79.99 % is below 80 %" in err
    assert call(given, "--accuracy", "0.81") == 0
    assert capsys.readouterr().err == ""


def test_an_int8_file_is_not_the_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(folder.parent / "runs", accuracy=0.9, stage="export-onnx_int8")
    assert call("a") == 0
    assert "that of the exported INT8 file, the score that of the float" in capsys.readouterr().err
    assert call("a", "--weight-bits", "8", "--activation-bits", "8") == 0
    assert capsys.readouterr().err == ""


def test_a_run_on_other_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(folder.parent / "runs", "digits", 0.99)
    assert call("a") == 0
    out, err = capsys.readouterr()
    assert "accuracy    99 % on digits; an entry needs 80 %" in out
    assert "trained on digits, not on cifar100. It is no entry" in err


def test_csv_and_a_real_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    students.save(folder, StudentNetwork(trace(networks.build("resnet20", 10), (3, 32, 32))))
    assert call(str(folder), "--csv", "layers.csv") == 0
    assert "written: layers.csv" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("layers.csv").read_text(encoding="utf-8").splitlines()))
    assert sum(row["kind"] == "add" for row in rows) == 9, "one per block"
    # Parameters without the scales of 21 norms: 7 each of 16, 32 and 64 channels
    scales = 7 * 16 + 7 * 32 + 7 * 64
    assert sum(float(row["storage"]) for row in rows) == 272_474 - scales


def test_assumed_bits_and_accumulation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights and inputs of 4 bits; products of 7 bits; biases stay at 32."""
    words = [str(folder), "--weight-bits", "4", "--activation-bits", "4"]
    assert call(*words, "--accumulation", "tree") == 0
    lines = capsys.readouterr().out.splitlines()
    claims = "accumulation tree, freebie no, weight bits 4 (assumed), activation bits 4 (assumed)"
    assert lines[0].endswith(claims)
    # 8 * 4 / 32 + 2; 8 * 4 / 32; two trees of 2 * 7 + 8 bit-additions, two additions of 32 bits
    assert lines[3].split()[:4] == ["total", "3", "1", "3.375"]


def test_freebie(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(folder), "--freebie") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("accumulation fp32, freebie yes")
    assert lines[3].split()[:4] == ["total", "5", "4", "8"]
    fails(call(str(folder), "--freebie", "--weight-bits", "8"), capsys, "out.weight has 8 bits")
    fails(call(str(folder), "--freebie", "--accumulation", "tree"), capsys, "adds at 32 bits")


def test_bad_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(call(str(folder), "--accuracy", "80"), capsys, "--accuracy is a fraction", "got 80")
    fails(call(str(folder), "--perplexity", "9"), capsys, "cifar100 is judged by accuracy")
    bad = call(str(folder), "--accuracy", "0.9", task="wikitext103")
    fails(bad, capsys, "wikitext103 is judged by perplexity: give --perplexity")
    fails(call(str(folder), "--weight-bits", "33"), capsys, "at most 32 bits")
    fails(call(str(folder), task="cifar10"), capsys, "cifar10", "cifar100")
    (folder.parent / "empty").mkdir()
    fails(call("empty"), capsys, "neither the folder of a student nor that of a run")
    fails(call("nothing"), capsys, "No run 'nothing'")


def test_assumptions_do_not_hide_what_the_student_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = micronet.Description({"out.weight": 3})
    monkeypatch.setattr(micronet, "describe", lambda network: told)
    fails(call(str(folder), "--weight-bits", "4"), capsys, "--weight-bits changes nothing")
    assert call(str(folder), "--activation-bits", "8") == 0
    assert capsys.readouterr().out.splitlines()[2].split()[5:7] == ["3", "8"]


def test_a_run_without_finalists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run.create(folder.parent / "runs", "new", {}).close()
    fails(call("new"), capsys, "new has no trained finalist")
