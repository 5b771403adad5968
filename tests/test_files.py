from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from esnac import files
from esnac.errors import EsnacError


def test_replaces_with_the_mode_of_any_new_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "other"
    path.write_text("old")
    other.write_text("")
    files.replace(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "other"]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise kind

    with pytest.raises(kind):
        files.replace(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writers_at_the_same_time_have_their_own_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def slow(temporary: Path) -> None:
        temporary.write_text("slow")
        files.replace(path, lambda inner: inner.write_text("fast"))

    files.replace(path, slow)
    assert path.read_text() == "slow"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_content_is_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, rename = os.fsync, os.replace

    def synced(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        order.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    files.replace(tmp_path / "a", lambda temporary: temporary.write_text("new"))
    assert order == ["content", "rename", "folder"]


def test_write_json_replaces_or_leaves(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    files.write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["card.json"]
    with pytest.raises(EsnacError, match="Cannot write"):
        files.write_json(tmp_path / "missing/card.json", {})


def test_a_folder_is_made_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "more" / "a.txt"
    with pytest.raises(EsnacError, match=r"Cannot write .*a\.txt: no such file or directory"):
        files.write(path, lambda temporary: temporary.write_text("new"))
    files.write(path, lambda temporary: temporary.write_text("new"), parents=True)
    assert path.read_text() == "new"
    with pytest.raises(EsnacError, match="Cannot write"):
        files.write(path / "b.txt", lambda temporary: temporary.touch(), parents=True)


def test_a_lock_is_exclusive_until_its_handle_closes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    handle = files.lock(path)
    assert handle is not None
    with pytest.raises(files.LockedError, match=f"process {os.getpid()}"):
        files.lock(path)
    os.close(handle)
    again = files.lock(path)
    assert again is not None
    os.close(again)
