from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import torch

from esnac.errors import RunError
from esnac.training import checkpoints
from esnac.training.checkpoints import Checkpoint


@pytest.fixture
def checkpoint() -> Checkpoint:
    weights = {"a.weight": torch.rand(2, 3)}
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(2, 3)}}, "param_groups": []}
    return Checkpoint("print", 3, weights, optimizer, weights, 1, 0.5, [{"epoch": 0, "loss": 1.5}])


def test_reads_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    checkpoints.save(folder, checkpoint)
    found = checkpoints.load(folder, "print")
    assert found is not None
    assert torch.equal(found.model["a.weight"], checkpoint.model["a.weight"])
    plain = ("fingerprint", "next_epoch", "best_epoch", "best_accuracy", "history")
    assert [getattr(found, name) for name in plain] == ["print", 3, 1, 0.5, checkpoint.history]
    assert os.listdir(folder) == [checkpoints.FILE]


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path / "nowhere", "print") is None


def test_another_training_is_not_continued(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(tmp_path, dataclasses.replace(checkpoint, fingerprint="other"))
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load(tmp_path, "print") is None
    assert "another training" in caplog.text


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_damaged_file_is_not_continued(
    size: int, checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save(tmp_path, checkpoint)
    path = tmp_path / checkpoints.FILE
    path.write_bytes(path.read_bytes()[:size])
    assert checkpoints.load(tmp_path, "print") is None
    assert "damaged" in caplog.text


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_pickled_objects_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**vars(checkpoint), "history": Evil()}, tmp_path / checkpoints.FILE)
    assert checkpoints.load(tmp_path, "print") is None
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_cannot_be_made(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="checkpoint"):
        checkpoints.save(tmp_path / "file", checkpoint)


def test_a_failed_write_leaves_the_old_one(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, checkpoint)

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="failed writing"):
        checkpoints.save(tmp_path, dataclasses.replace(checkpoint, next_epoch=4))
    found = checkpoints.load(tmp_path, "print")
    assert found is not None
    assert found.next_epoch == 3
    assert os.listdir(tmp_path) == [checkpoints.FILE]


def test_two_writers_do_not_share_a_temporary_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, seen = torch.save, []

    def interrupted(content: object, path: Path) -> None:
        """Another process saves while this one does."""
        monkeypatch.setattr(torch, "save", save)
        checkpoints.save(tmp_path, dataclasses.replace(checkpoint, next_epoch=9))
        seen.extend(os.listdir(tmp_path))
        save(content, path)

    monkeypatch.setattr(torch, "save", interrupted)
    checkpoints.save(tmp_path, checkpoint)
    assert checkpoints.FILE in seen
    found = checkpoints.load(tmp_path, "print")
    assert found is not None
    assert found.next_epoch == 3
    assert os.listdir(tmp_path) == [checkpoints.FILE]
