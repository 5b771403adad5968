from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from esnac.data.file_list import FileList

NAMES = ["a.png", "dog/ä ö.jpg", "dog/deeper/1.png", "z"]


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    listed = FileList.of(tmp_path, NAMES)
    assert len(listed) == 4
    assert [listed[index] for index in range(4)] == [tmp_path / name for name in NAMES]
    assert not len(FileList.of(tmp_path, []))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe.png")
    assert FileList.of(tmp_path, [odd])[0] == tmp_path / odd


def test_a_relative_root_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        listed = FileList.of(Path("photos"), ["1.png"])
    assert listed[0] == tmp_path / "photos" / "1.png"


def test_two_lists_of_one_root(tmp_path: Path) -> None:
    both = FileList.of(tmp_path, NAMES[:3]) + FileList.of(tmp_path, NAMES[3:])
    assert [both[index] for index in range(4)] == [tmp_path / name for name in NAMES]
    assert torch.equal(both.ends, FileList.of(tmp_path, NAMES).ends)


def test_a_million_files_take_as_much_memory_as_their_names(tmp_path: Path) -> None:
    """As ImageNet names them: 36 bytes, and 8 that say where a name ends."""
    file = "train/n01440764/n01440764_10026.JPEG"
    one = FileList.of(tmp_path, [file])
    many = FileList(one.root, one.text.repeat(1_000_000), one.ends * torch.arange(1, 1_000_001))
    assert many[999_999] == tmp_path / file
    assert len(one.text) == 36
    assert many.text.nbytes + many.ends.nbytes == 44_000_000
