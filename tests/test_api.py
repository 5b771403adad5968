"""Whole runs in seconds: a tiny network on a few digits, one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import esnac
from esnac import api, data, preparation
from esnac.errors import EsnacError, RunError, SettingsError
from esnac.search import evaluation
from esnac.settings import to_plain

DEVICE = os.environ.get("ESNAC_TEST_DEVICE", "cpu")
SMALL = [
    "data.limit=300", "teacher.epochs=6", "search.steps=2", "search.batch=3", "search.pool=40",
    "surrogate.hidden=8", "surrogate.steps=5", "evaluation.epochs=3", "finish.training.epochs=4",
]  # fmt: skip


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.block = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


def folders(root: Path) -> preparation.Folders:
    return preparation.Folders(root / "runs", root / "teachers", [root / "teachers"])


def choices(*more: str, seed: int | None = None) -> preparation.Choices:
    return preparation.Choices("resnet20", "digits", seed=seed, assignments=[*SMALL, *more])


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end."""
    return api.start(choices(), folders(tmp_path_factory.mktemp("whole")), device=DEVICE)


def test_a_run_leaves_journal_students_scalars_and_a_teacher(finished: Path) -> None:
    kinds = [event["event"] for event in events(finished)]
    assert kinds[:2] == ["run", "teacher"]
    assert kinds.count("trial") == 12
    assert kinds[-4:] == ["finalists", "stage", "stage", "end"]
    for number in range(6):
        assert (finished / "trials" / f"{number:04d}" / "weights.safetensors").is_file()
    assert list((finished / "tensorboard").iterdir())
    teacher = finished.parent.parent / "teachers" / "resnet20-digits-limit300"
    assert set(os.listdir(teacher)) == {".lock", "card.json", "weights.safetensors"}
    assert not (finished / "finalists" / "0" / "checkpoint").exists()


def test_a_student_reloads_elsewhere_with_the_accuracy_of_the_table(finished: Path) -> None:
    stage = next(event for event in events(finished) if event["event"] == "stage")
    script = f"""
import dataclasses, sys, torch, esnac
from esnac import data
from esnac.training import accuracy
student = esnac.load_student({str(finished / stage["path"])!r}).to({DEVICE!r})
digits = data.load("digits", None, data.DataSettings()).to({DEVICE!r})
known = student.preparation
digits = dataclasses.replace(digits, mean=known.mean, std=known.std)
print(repr(accuracy(student, digits.test, digits)))
assert known.class_names == tuple("0123456789")
assert "esnac.networks" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == stage["accuracy"]


def test_the_teacher_is_trained_once(finished: Path) -> None:
    root = finished.parent.parent
    card = root / "teachers" / "resnet20-digits-limit300" / "card.json"
    before = card.stat().st_mtime_ns
    api.start(choices("search.steps=1"), folders(root), suffix="again", device=DEVICE)
    assert card.stat().st_mtime_ns == before


def test_an_ended_run_resumes_to_nothing_new(finished: Path) -> None:
    before = events(finished)
    api.start(choices(), folders(finished.parent.parent), device=DEVICE, resume=True)
    assert events(finished) == before


def test_resume_with_other_settings_is_refused(finished: Path) -> None:
    with pytest.raises(RunError, match="search.steps 2 there, 3 here"):
        api.start(
            choices("search.steps=3"), folders(finished.parent.parent), device=DEVICE, resume=True
        )


def test_finish_ends_a_search_where_it_stands(finished: Path, tmp_path: Path) -> None:
    place = folders(tmp_path)
    path = api.start(choices(), place, device=DEVICE)
    journal = path / "journal.jsonl"
    rows = journal.read_text().splitlines(keepends=True)
    done = [i for i, row in enumerate(rows) if '"DONE"' in row]
    journal.write_text("".join(rows[: done[2] + 1]))  # three evaluations are left
    journal.write_text("".join(rows[:2]))
    with pytest.raises(RunError, match="no finished evaluation"):
        api.finish(path, place, device=DEVICE)
    journal.write_text("".join(rows[: done[2] + 1]))
    api.finish(path, place, device=DEVICE)
    stages = [event for event in events(path) if event["event"] == "stage"]
    assert len(stages) == 2
    assert {stage["trial"] for stage in stages} <= {0, 1, 2}


def test_a_failing_trial_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second trial is trained at a rate that makes its loss infinite."""
    calls, honest = [], evaluation.Training

    def sometimes(model, images, settings, **more):
        calls.append(settings)
        if len(calls) % 2:
            return honest(model, images, settings, **more)
        return honest(model, images, replace(settings, learning_rate=1e30), **more)

    monkeypatch.setattr(evaluation, "Training", sometimes)
    path = api.start(choices(), folders(tmp_path), device=DEVICE)
    failed = [e for e in events(path) if e.get("state") == "FAILED"]
    assert [event["trial"] for event in failed] == [1, 3, 5]
    assert "not finite" in failed[0]["reason"]
    assert not (path / "trials" / "0001").exists()
    assert len([e for e in events(path) if e["event"] == "stage"]) == 2


def test_finalists_are_trained_together_only_on_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="finish.workers = 2 needs workers: add --executor ray"):
        api.start(choices("finish.workers=2"), folders(tmp_path), device=DEVICE)
    assert not list((tmp_path / "runs").glob("*"))
    with pytest.raises(SettingsError, match="finish.workers must be at least 1"):
        preparation.resolve_settings(choices("finish.workers=0"), folders(tmp_path))


def test_run_search_on_a_module_and_tensors_of_the_user(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(200, 1, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    own = data.from_tensors((images[:150], labels[:150]), (images[150:], labels[150:]))
    model = Tiny(num_classes=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = {
        "search": {"steps": 1, "batch": 2, "pool": 20},
        "surrogate": {"hidden": 4, "steps": 2},
        "evaluation": {"epochs": 1},
        "finish": {"finalists": 1, "training": {"epochs": 2}},
    }
    result = esnac.run_search(model, own, settings, runs=tmp_path, device=DEVICE)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert result.summary.best_finalist() is not None
    assert result.best_student()(images[:3]).shape == (3, 2)
    with pytest.raises(RunError, match="resume"):
        esnac.run_search(model, own, settings, runs=tmp_path, device=DEVICE)
    again = esnac.run_search(model, own, settings, runs=tmp_path, device=DEVICE, resume=True)
    assert again.path == result.path


def test_settings_come_in_layers(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[search]\nsteps = 7\nbatch = 5\n")
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "resnet.toml").write_text("minimum = 4")
    (tmp_path / "teachers" / "resnet20-digits").mkdir(parents=True)
    (tmp_path / "teachers" / "resnet20-digits" / "recipe.toml").write_text("epochs = 2")
    place = preparation.Folders(tmp_path, tmp_path, [tmp_path / "teachers"], tmp_path / "spaces")
    wanted = preparation.Choices("resnet20", "digits", file=file, assignments=["search.batch=6"])
    settings = api.resolve_settings(wanted, place)
    assert (settings.search.steps, settings.search.batch) == (7, 6)  # file, --set over it
    assert settings.search.pool == 500  # preset quick
    assert settings.space.minimum == 4
    assert settings.teacher.epochs == 2
    assert to_plain(settings)["evaluation"]["distillation"] == "logit_mse"  # default


def test_the_paper_preset_is_the_published_budget(tmp_path: Path) -> None:
    place = preparation.Folders(tmp_path, tmp_path)
    settings = api.resolve_settings(
        preparation.Choices("resnet20", "digits", preset="paper"), place
    )
    search, evaluation_, full = settings.search, settings.evaluation, settings.finish.training
    assert (search.steps, search.batch, search.pool) == (20, 8, 1000)
    assert (evaluation_.epochs, evaluation_.optimizer, evaluation_.learning_rate) == (
        10, "adam", 1e-3,
    )  # fmt: skip
    assert (full.epochs, full.learning_rate, full.milestones) == (300, 0.01, (100, 200))
    assert settings.finish.finalists == 4
    assert settings.surrogate.layers == 4


def two_classes() -> data.DataSet:
    images = torch.zeros(40, 1, 8, 8)
    return data.from_tensors((images, torch.arange(40) % 2), (images, torch.arange(40) % 2))


def test_a_model_that_knows_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "accuracy", lambda *_: 0.0)
    with pytest.raises(EsnacError, match="trained"):
        preparation.measured_teacher(Tiny(num_classes=2), two_classes(), torch.device("cpu"))


def test_a_model_for_other_classes_is_noticed() -> None:
    with pytest.raises(EsnacError, match="7 outputs.*2 classes"):
        preparation.measured_teacher(Tiny(num_classes=7), two_classes(), torch.device("cpu"))
