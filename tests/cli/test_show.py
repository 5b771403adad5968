"""`show` on a run folder made here."""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.etree import ElementTree

import pytest

from esnac import networks
from esnac.cli import show
from esnac.errors import EsnacError, RunError
from esnac.graphs import student as students
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.runs import Run

SVG = "{http://www.w3.org/2000/svg}"
GRAPH = ArchGraph((Layer("out", "linear", (INPUT,), (4,), (2,), {"bias": True}, "fc"),), (4,))


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    show.add_parser(parser.add_subparsers())
    return show.run(parser.parse_args(["show", *arguments]))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("ESNAC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = {"network": "resnet20", "seed": 127, "search": {"steps": 20, "rates": (0.3, 0.4)}}
    figures = {"params": 40_000, "macs": 6_000_000, "ratio": 0.8532}
    with Run.create(tmp_path / "runs", "a", settings) as run:
        header = {"network": "resnet20", "dataset": "digits", "engine": "esnac", "versions": {}}
        run.append("run", seed=127, **header)
        accuracies = {"accuracy": 0.98, "validation_accuracy": 0.97}
        run.append("teacher", params=272_474, macs=40_000_000, **accuracies)
        for trial in range(14):
            moves = {"removed": [3, 5], "kept": [8, 4], "skips": [[1, 7]]}
            run.append("trial", trial=trial, state="PROPOSED", step=1, moves=moves, **figures)
        for trial in range(12):
            result = {"accuracy": 0.9, "f": 0.5 + trial / 100, "seconds": 2.5}
            run.append("trial", trial=trial, state="DONE", **result, **figures)
        lost = {"reason": "loss is not finite in epoch 3", "seconds": 1.0}
        run.append("trial", trial=12, state="FAILED", **lost)
    return run


def finish(run: Run, index: int = 0, trial: int = 11) -> None:
    with Run.open(run.path, write=True) as opened:
        opened.append("finalists", trials=[trial])
        done = {"stage": "train", "accuracy": 0.975, "validation_accuracy": 0.97, "f": 0.96}
        done |= {"params": 40_000, "macs": 6_000_000, "ratio": 0.8532, "seconds": 9.0}
        opened.append("stage", index=index, trial=trial, path=f"finalists/{index}", **done)


def test_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a") == 0
    output = capsys.readouterr().out
    assert 'settings: network="resnet20" seed=127\n  search: steps=20 rates=[0.3, 0.4]' in output
    assert "trials: 12 DONE, 1 FAILED, 1 PROPOSED" in output
    assert "failed (1): loss is not finite in epoch 3" in output
    table = output.split("best trials (validation)\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:]] == [str(n) for n in range(11, 1, -1)]
    cells = ["11", "1", "40.00", "k", "6.00", "M", "0.8532", "6.81x", "90.00", "%", "0.6100", "2.5"]
    assert table[1].split() == cells


def test_a_trial_that_is_done(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    finish(run)
    assert call("a", "11") == 0
    output = capsys.readouterr().out
    assert output.startswith("a, trial 11: DONE\n  PROPOSED  2")
    assert "\n  DONE      2" in output
    assert "  removed: [3, 5]\n  kept: [8, 4]\n  skips: [[1, 7]]\n" in output
    assert "predicted: 40.00 k parameters, 6.00 M MACs, ratio 0.8532" in output
    assert "finalist 0\n  train: test accuracy 97.50 %, f 0.9600, 40.00 k parameters" in output


def test_trials_that_failed_or_wait(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a", "12") == 0
    assert "failed: loss is not finite in epoch 3" in capsys.readouterr().out
    assert call("a", "13") == 0
    output = capsys.readouterr().out
    assert output.startswith("a, trial 13: PROPOSED")
    assert "outcome" not in output


def test_a_finalist_that_failed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.open(run.path, write=True) as opened:
        opened.append("finalists", trials=[11, 10])
        opened.append("failure", index=1, trial=10, stage="train", reason="no memory")
    for trial in ([], ["10"]):
        assert call("a", *trial) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "Finalist 1 (trial 10) failed in train: no memory"
    assert call("a", "11") == 0
    assert "no memory" not in capsys.readouterr().out


def test_a_run_that_has_hardly_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run.create(tmp_path, "new", {}).close()
    assert call("new", "--runs", str(tmp_path)) == 0
    assert "trials: none yet" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"new has no trial 0\. It has none yet"):
        call("new", "0", "--runs", str(tmp_path))


def test_unknown_trial_or_run(run: Run) -> None:
    with pytest.raises(RunError, match=r"a has no trial 99\. It has trials 0 to 13"):
        call("a", "99")
    with pytest.raises(RunError, match="No run 'b'"):
        call("b")


def test_drawing(run: Run, tmp_path: Path) -> None:
    """Two real students: a residual network with a layer removed, and one linear layer."""
    resnet = trace(networks.build("resnet20", 10, 1), (1, 8, 8))
    for folder, graph in ((run.trial_folder(11), resnet), (run.finalist_folder(0), GRAPH)):
        students.save(folder, StudentNetwork(graph))
    with pytest.raises(RunError, match="no trained finalist to draw"):
        call("a", "--svg", "x.svg")
    finish(run)
    assert call("a", "--svg", "best.svg") == 0
    assert call("a", "11", "--svg", "trial.svg") == 0
    for name, graph in (("best.svg", GRAPH), ("trial.svg", resnet)):
        picture = ElementTree.parse(tmp_path / name).getroot()
        assert picture.tag == f"{SVG}svg"
        boxes = picture.findall(f".//{SVG}title")
        assert len(boxes) == len(graph) + 1, "a box for each layer and one for the input"


def test_what_cannot_be_drawn(run: Run, tmp_path: Path) -> None:
    students.save(run.trial_folder(11), StudentNetwork(GRAPH))
    with pytest.raises(RunError, match=r"No architecture\.json in .*0012"):
        call("a", "12", "--svg", "x.svg")
    with pytest.raises(EsnacError, match="Cannot write"):
        call("a", "11", "--svg", "missing/x.svg")
    (run.trial_folder(11) / "architecture.json").write_text("{")
    with pytest.raises(EsnacError, match=r"0011.architecture\.json"):
        call("a", "11", "--svg", "x.svg")
    assert not (tmp_path / "x.svg").exists()
