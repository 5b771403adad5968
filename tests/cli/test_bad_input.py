"""Bad input: one line on stderr, exit code 2, no traceback, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esnac import networks
from esnac.cli import main
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.runs import Run
from esnac.search.earlier import save_teacher
from esnac.search.feed import proposed
from esnac.search.trial import Trial
from esnac.search_spaces import SpaceSettings

QUICK = [
    "data.limit=200", "teacher.epochs=1", "search.steps=1", "search.batch=2", "search.pool=20",
    "surrogate.hidden=4", "surrogate.steps=2", "evaluation.epochs=1", "finish.training.epochs=1",
]  # fmt: skip


def search(root: Path, *more: str, dataset: str = "digits", network: str = "resnet20") -> int:
    words = ["search", "--network", network, "--dataset", dataset, "--device", "cpu"]
    words += ["--runs", str(root / "runs"), "--teachers", str(root / "teachers")]
    for setting in QUICK:
        words += ["--set", setting]
    return main([*words, *more])


def fails(code: int, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Exit code 2 and one line that holds all parts."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if ": epoch " not in line]
    assert code == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("esnac: error: ")
    assert out == ""
    for part in parts:
        assert part in lines[0]


def untouched(root: Path) -> None:
    runs = root / "runs"
    assert not runs.exists() or not list(runs.iterdir())


def test_unknown_network(tmp_path, capsys):
    fails(search(tmp_path, network="resnet21"), capsys, "resnet21", "resnet20", "vgg19")
    untouched(tmp_path)


def test_unknown_dataset(tmp_path, capsys):
    fails(search(tmp_path, dataset="cifar11"), capsys, "cifar11", "cifar10", "digits")
    untouched(tmp_path)


def test_unknown_key_of_set(tmp_path, capsys):
    fails(search(tmp_path, "--set", "search.stepps=1"), capsys, "search.stepps", "'search.steps'")
    untouched(tmp_path)


def test_unknown_key_in_a_file(tmp_path, capsys):
    file = tmp_path / "own.toml"
    file.write_text("[evaluation]\nepoch = 3\n")
    fails(search(tmp_path, "--settings", str(file)), capsys, "evaluation.epoch", "epochs")
    untouched(tmp_path)


def test_value_out_of_range(tmp_path, capsys):
    fails(search(tmp_path, "--set", "search.steps=0"), capsys, "search", "steps", "0")
    untouched(tmp_path)


def test_truncated_weights(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save(networks.build("resnet20", 10, 1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    fails(search(tmp_path, "--teacher", str(path)), capsys, "weights.pt", "truncated")
    untouched(tmp_path)


def test_weights_of_another_network(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save(networks.build("resnet32", 10, 1).state_dict(), path)
    fails(search(tmp_path, "--teacher", str(path)), capsys, "another network", "is unknown")
    untouched(tmp_path)


def images(root: Path, classes: dict[str, int]) -> str:
    for name, count in classes.items():
        (root / "set" / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(root / "set" / name / f"{number}.png")
    return f"images:{root / 'set'}"


def test_a_class_with_one_image(tmp_path, capsys):
    fails(search(tmp_path, dataset=images(tmp_path, {"cat": 5, "dog": 1})), capsys, "dog")
    untouched(tmp_path)


def test_an_unreadable_image(tmp_path, capsys):
    dataset = images(tmp_path, {"cat": 12, "dog": 12})
    (tmp_path / "set" / "dog" / "3.png").write_bytes(b"no image")
    fails(search(tmp_path, "--set", "data.limit=none", dataset=dataset), capsys, "3.png")
    untouched(tmp_path)


def test_a_run_that_exists(tmp_path, capsys):
    (tmp_path / "runs" / "resnet20-digits-127").mkdir(parents=True)
    fails(search(tmp_path), capsys, "resnet20-digits-127", "--resume", "--suffix")
    assert not list((tmp_path / "runs" / "resnet20-digits-127").iterdir())


def test_a_run_to_resume_that_does_not_exist(tmp_path, capsys):
    fails(search(tmp_path, "--resume"), capsys, "resnet20-digits-127", "without --resume")
    untouched(tmp_path)


def test_a_runs_folder_that_cannot_be_written(tmp_path, capsys):
    if os.geteuid() == 0:  # root writes into read-only folders, but not into /proc
        runs = Path("/proc/runs")
    else:
        runs = tmp_path / "locked" / "runs"
        runs.parent.mkdir(mode=0o500)
    fails(search(tmp_path, "--runs", str(runs)), capsys, str(runs))
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize("command", ["stat", "show", "finish"])
def test_a_corrupt_journal_line_in_the_middle(tmp_path, capsys, command):
    assert search(tmp_path) == 0
    capsys.readouterr()
    journal = tmp_path / "runs" / "resnet20-digits-127" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    lines[2] = lines[2][:20] + "\n"
    journal.write_text("".join(lines))
    code = main([command, "resnet20-digits-127", "--runs", str(tmp_path / "runs")])
    fails(code, capsys, "journal.jsonl", "line 3")
    assert journal.read_text() == "".join(lines)


def test_a_loss_that_is_nan_in_every_trial(tmp_path, capsys):
    """Each trial fails with its reason in the journal; without any success the search says so."""
    code = search(tmp_path, "--set", "evaluation.learning_rate=1e30", "--set", "search.batch=3")
    _, err = capsys.readouterr()
    assert code == 2
    assert "All 3 evaluations failed" in err
    assert "not finite" in err
    assert "Traceback" not in err
    journal = (tmp_path / "runs" / "resnet20-digits-127" / "journal.jsonl").read_text()
    assert journal.count('"FAILED"') == 3


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--max-params", "10"],
            ["max_params = 10", "smallest possible student has", "parameters"],
        ),
        (["--max-macs", "0.1k"], ["max_macs = 100", "has 786 MACs"]),
        (["--objective", "pareto", "--measures", "accuracy"], ["objective.measures", "latency"]),
        (["--objective", "pareto", "--measures", "params,speed"], ["objective.measures", "speed"]),
        (["--measures", "accuracy,macs"], ["measures has no effect without objective.kind"]),
        (["--set", "objective.max_bytes=-3"], ["max_bytes", "positive"]),
        (["--set", "search.batch=600"], ["search.pool", "at least search.batch (600)"]),
        (["--engine", "random", "--warm-start", "old"], ["random cannot start warm"]),
        (["--warm-start", "none"], ["No run 'none'"]),
    ],
)
def test_goals_that_cannot_be(words, parts, tmp_path, capsys):
    """Said before a teacher is trained."""
    old = tmp_path / "runs" / "old"
    graph = trace(networks.build("resnet20", 10, 1), (1, 8, 8))
    moves = Space(graph).moves(Space(graph).identity(), 0)
    with Run.create(tmp_path / "runs", "old", {}) as run:
        save_teacher(run.path, graph, SpaceSettings(), 0.9)
        trial = Trial(0, 0, moves, 1, 1, 0.0)
        run.append_many([proposed(trial)])
        figures = {"accuracy": 0.5, "params": 1, "macs": 1, "ratio": 0.0, "f": 0.0, "seconds": 1}
        run.append("trial", trial=0, state="DONE", **figures)
    fails(search(tmp_path, *words), capsys, *parts)
    assert list((tmp_path / "runs").iterdir()) == [old]
    assert not (tmp_path / "teachers").exists()


def test_a_warm_start_from_another_format(tmp_path, capsys):
    with Run.create(tmp_path / "runs", "old", {}):
        pass
    code = search(tmp_path, "--warm-start", "old")
    fails(code, capsys, "Cannot start warm", "teacher.json")
    (tmp_path / "runs" / "old" / "teacher.json").write_text('{"format": 99}')
    code = search(tmp_path, "--warm-start", "old")
    fails(code, capsys, "format 99", "this version reads 1")
