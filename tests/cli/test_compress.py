"""`compress` on digits: from weights, from a student's folder, from a teacher; and bad input."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from esnac import data, networks, teachers
from esnac.cli import main
from esnac.graphs import student as students
from esnac.stages.notation import parse
from esnac.stages.pipeline import resolve
from esnac.training import accuracy

SMALL = ["data.limit=200", "finish.training.learning_rate=0.01", "teacher.epochs=2"]


def call(root: Path, command: str, *more: str) -> int:
    words = [command, "--network", "resnet20", "--dataset", "digits", "--device", "cpu"]
    words += ["--teachers", str(root / "teachers")]
    words += [] if command == "teacher" else ["--runs", str(root / "runs")]
    for setting in SMALL:
        words += ["--set", setting]
    return main([*words, *more])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of a network that nobody trained; it is right on some images all the same."""
    torch.manual_seed(0)
    torch.save(networks.build("resnet20", 10, 1).state_dict(), tmp_path / "own.pt")
    return tmp_path / "own.pt"


def stages(root: Path, suffix: str = "compress") -> list[dict]:
    path = root / "runs" / f"resnet20-digits-{suffix}" / "journal.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["event"] == "stage"]


def fails(code: int, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    _, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if ": epoch " not in line]
    assert (code, len(lines)) == (2, 1), err
    for part in ["esnac: error: ", *parts]:
        assert part in lines[0]


def test_a_network_and_then_its_student(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = ("--stages", "train(epochs=1)")
    assert call(tmp_path, "compress", "--weights", str(weights), *chain) == 0
    output = capsys.readouterr().out
    assert "; no search; 1 finalists." in output
    assert [line.split()[1] for line in output.splitlines()[-2:]] == ["source", "train-finetune"]
    first = stages(tmp_path)[1]
    student = tmp_path / "runs" / "resnet20-digits-compress" / first["path"]
    more = ("--weights", str(student), "--suffix", "again")
    assert call(tmp_path, "compress", *more, *chain) == 0
    again = stages(tmp_path, "again")
    assert [row["stage"] for row in again] == ["source", "train-finetune"]
    assert again[0]["accuracy"] == first["accuracy"]
    copy = tmp_path / "runs" / "resnet20-digits-again" / "finalists" / "0"
    assert students.read_files(copy) == students.read_files(student)
    digits = data.load("digits", None, data.DataSettings(limit=200))
    assert accuracy(students.load(copy), digits.test, digits) == first["accuracy"]
    capsys.readouterr()
    assert main(["show", "resnet20-digits-again", "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "stages of the finalists (test)\nfinalist  stage " in output
    assert "trials:" not in output


def test_resumed_and_continued_without_the_weights(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run holds its network."""
    assert call(tmp_path, "compress", "--weights", str(weights), "--stages", "train(epochs=1)") == 0
    weights.unlink()
    assert call(tmp_path, "compress", "--resume") == 0
    assert len(stages(tmp_path)) == 2
    folders = ["--runs", str(tmp_path / "runs"), "--device", "cpu"]
    longer = "train(epochs=1), train(scratch, epochs=1)"
    assert main(["finish", "resnet20-digits-compress", *folders, "--stages", longer]) == 0
    assert [row["stage"] for row in stages(tmp_path)][2:] == ["train-scratch"]
    fails(call(tmp_path, "search", "--resume", "--suffix", "compress"), capsys, "does not search")


def test_a_teacher_that_is_there_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = ("--stages", "train(epochs=1)")
    command = "esnac teacher --network resnet20 --dataset digits --set data.limit=200"
    fails(call(tmp_path, "compress", *chain), capsys, "no teacher", command)
    assert not list((tmp_path / "runs").iterdir())
    assert call(tmp_path, "teacher") == 0
    assert call(tmp_path, "compress", *chain) == 0
    folder = teachers.find([tmp_path / "teachers"], "resnet20-digits-limit200")
    card = json.loads((folder / "card.json").read_text())
    assert stages(tmp_path)[0]["accuracy"] == card["accuracy"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["Nothing to do: name stages"]),
        (["--stages", ""], ["the name of a stage is expected"]),
        (["--stages", "trian"], ["'trian' is no stage", "Did you mean 'train'?"]),
        (["--stages", "train(finetnue)"], ["method", "Did you mean 'finetune'?"]),
        (["--stages", "train(epoch=3)"], ["unknown key 'epoch'", "'epochs'"]),
        (["--stages", "train(epochs=0)"], ["epochs must be at least 1"]),
        (["--stages", "train(epochs=1"], ["')' is expected"]),
        (["--stages", "train", "--weights", "none.pt"], ["No weights at none.pt"]),
        (["--stages", "train", "--resume"], ["to resume", "without --resume"]),
        (["--stages", "train", "--set", "finish.workers=2"], ["needs workers"]),
    ],
)
def test_bad_input(
    words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(call(tmp_path, "compress", *words), capsys, *parts)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_stages_train_as_the_preset_says(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sparsity rises over two thirds of the 300 epochs."""
    more = ("--weights", str(weights), "--stages", "prune(agp)", "--dry-run", "--preset", "full")
    assert call(tmp_path, "compress", *more) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "199"


def test_the_chains_of_the_documentation_survive_a_shell(root: Path) -> None:
    found = []
    for page in (root / "README.md", *root.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:python -m )?esnac .*", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if "--stages" in words:
                found.append(words[words.index("--stages") + 1])
    chains = [chain for chain in found if not chain.startswith("STAGE")]
    assert any('["' in chain for chain in chains), "quoted text inside"
    for chain in chains:
        assert resolve(parse(chain))


def test_a_folder_that_holds_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    more = ("--weights", str(tmp_path / "empty"), "--stages", "train")
    fails(call(tmp_path, "compress", *more), capsys, "No student at")


def test_stages_in_a_file(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    file.write_text('[[stages]]\nstage = "train"\nmethod = "scratch"\nepochs = 1\n')
    assert call(tmp_path, "compress", "--weights", str(weights), "--settings", str(file)) == 0
    assert [row["stage"] for row in stages(tmp_path)] == ["source", "train-scratch"]
