from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from esnac.cli import main, sensitivity
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.pruning.schedule import load
from esnac.runs import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )
    students.save(tmp_path / "s", StudentNetwork(trace(module, (1, 8, 8))))
    return tmp_path / "s"


def test_the_table_the_csv_and_the_schedule(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("a.csv", "plan.toml")]
    words = ["--drop", "0.9", "--csv", files[0], "--schedule", files[1]]
    assert main(["sensitivity", str(folder), "--dataset", "digits", *words]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        "weight", *(f"{n}%" for n in range(0, 100, 10)), "proposed",
    ]  # fmt: skip
    assert "validation accuracy when dense" in out
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    assert [pruner.sparsity for pruner in load(tmp_path / "plan.toml").pruners] == [0.9, 0.9]


def test_the_images_are_those_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of so few images has 7 to validate on, and another accuracy than the whole set."""
    settings = {"network": "x", "dataset": "digits", "data": {"limit": 70, "validation": 7}}
    with Run.create(tmp_path / "runs", "x-digits-1", settings) as run:
        run.append("run", network="x", dataset="digits", seed=1, engine="random", versions={})
        inside = run.finalist_folder(0)
    shutil.copytree(folder, inside, dirs_exist_ok=True)
    assert main(["sensitivity", str(inside), "--dataset", "digits"]) == 0
    dense = capsys.readouterr().out.rpartition("when dense: ")[2].split(" %")[0]
    assert float(dense) in [round(100 * right / 7, 2) for right in range(8)]


def test_an_unknown_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sensitivity", str(folder), "--dataset", "digits", "--layers", "conv"]
    assert main(words) == 2
    assert "Layer 'conv' matches nothing." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--drop", "1"], "drop must be in [0, 1)"),
        (["--schedule", "plan.toml", "--epochs", "2"], "epochs must be at least 3"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(
    words: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "_analyse", lambda args: pytest.fail("measured"))
    assert main(["sensitivity", str(folder), "--dataset", "digits", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("prune(nm, n=2, m=5)", "no multiple of 5"),
        ("prune(magnitude, layers=[conv9])", "'conv9' matches nothing"),
        ("slim(scales, layers=[conv9])", "'conv9' matches nothing"),
        ('quantize(lsq, overrides=["conv9=2"])', "conv9"),
        ("quantize(lsq, weights=1)", "from 2 to 8"),
    ],
)
def test_a_dry_run_finds_what_does_not_fit(
    chain: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--network", "resnet20", "--dataset", "digits", "--weights", str(folder)]
    assert main(["compress", *words, "--stages", chain, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_of_pruning_without_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--network", "resnet20", "--dataset", "digits", "--weights", str(folder)]
    chain = "prune(agp, sparsity=0.5, train=false)"
    assert main(["compress", *words, "--stages", chain, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:6] == ["at", "once", "prune", "agp", "0.5000", "2"]
    assert len(lines) == 3


def test_a_dry_run_tells_what_fires_when_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(layer.name for layer in students.load(folder).graph.layers)
    (tmp_path / "plan.toml").write_text(f'epochs = 4\n[[pruners]]\nlayers = ["{name}"]\nend = 3\n')
    chain = (
        f'schedule(file, path="{tmp_path / "plan.toml"}"), prune(magnitude, start=2, epochs=3), '
        "train(epochs=2)"
    )
    words = ["--network", "resnet20", "--dataset", "digits", "--weights", str(folder)]
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["compress", *words, "--stages", chain, "--dry-run", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1-schedule-file"
    assert lines[1].split() == ["epoch", "what", "value", "weights", "which"]
    assert [line.split()[:4] for line in lines[2:5]] == [
        ["0", "prune", "agp", "0.0500"], ["1", "prune", "agp", "0.7063"],
        ["2", "prune", "agp", "0.8000"],
    ]  # fmt: skip
    assert lines[5] == "2-prune-magnitude"
    assert lines[7].split()[:5] == ["2", "prune", "magnitude", "0.8000", "2"]
    assert lines[8:] == ["3-train-finetune", "(nothing in it depends on the epoch)"]
    assert not (tmp_path / "runs").exists()
