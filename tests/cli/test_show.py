"""`show` on a run folder made here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from esnac.cli import show
from esnac.errors import EsnacError, RunError
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.runs import Run

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
        run.append("run", network="resnet20", dataset="digits", seed=127, engine="esnac")
        run.append("teacher", accuracy=0.98, params=272_474, macs=40_000_000)
        for trial in range(14):
            moves = {"removed": [3, 5], "kept": [8, 4], "skips": [[1, 7]]}
            run.append("trial", trial=trial, state="PROPOSED", step=1, moves=moves, **figures)
        for trial in range(12):
            result = {"accuracy": 0.9, "f": 0.5 + trial / 100, "seconds": 2.5}
            run.append("trial", trial=trial, state="DONE", **result, **figures)
        run.append("trial", trial=12, state="FAILED", reason="loss is not finite in epoch 3")
    return run


def finish(run: Run, index: int = 0, trial: int = 11) -> None:
    with Run.open(run.path, write=True) as opened:
        opened.append("finalists", trials=[trial])
        done = {"stage": "train", "accuracy": 0.975, "f": 0.96, "params": 40_000}
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


def test_drawing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(graph: ArchGraph) -> str:
        drawn.append(graph)
        return "<svg/>"

    module = SimpleNamespace(draw=draw)
    monkeypatch.setitem(sys.modules, "esnac.graphs.draw", module)
    import esnac.graphs

    monkeypatch.setattr(esnac.graphs, "draw", module, raising=False)
    for folder in (run.trial_folder(11), run.finalist_folder(0)):
        folder.mkdir(parents=True)
        (folder / "architecture.json").write_text(GRAPH.to_json())
    with pytest.raises(RunError, match="no trained finalist to draw"):
        call("a", "--svg", "x.svg")
    finish(run)
    assert call("a", "--svg", "best.svg") == 0
    assert call("a", "11", "--svg", "trial.svg") == 0
    assert drawn == [GRAPH, GRAPH]
    assert (tmp_path / "best.svg").read_text() == (tmp_path / "trial.svg").read_text() == "<svg/>"
    with pytest.raises(RunError, match=r"No architecture\.json in .*0012"):
        call("a", "12", "--svg", "x.svg")
    with pytest.raises(RunError, match="Cannot write"):
        call("a", "11", "--svg", "missing/x.svg")
    (run.trial_folder(11) / "architecture.json").write_text("{")
    with pytest.raises(EsnacError, match=r"0011.architecture\.json"):
        call("a", "11", "--svg", "x.svg")
    assert not (tmp_path / "x.svg").exists()


def test_no_drawing_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import esnac.graphs

    run.trial_folder(1).mkdir(parents=True)
    (run.trial_folder(1) / "architecture.json").write_text(GRAPH.to_json())
    monkeypatch.setitem(sys.modules, "esnac.graphs.draw", None)
    monkeypatch.delattr(esnac.graphs, "draw", raising=False)
    with pytest.raises(RunError, match="cannot draw"):
        call("a", "1", "--svg", "x.svg")
