"""Each folder from each of its places, in order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from esnac import paths
from esnac.errors import SettingsError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current directory, no variables, an installation without a checkout."""
    for folder in ("here", "prefix", "site/esnac"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site/esnac/paths.py"))
    monkeypatch.delenv(paths.HOME, raising=False)
    monkeypatch.delenv(paths.DATA, raising=False)


def test_runs_go_to_flag_then_home_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.runs_folder(None) == tmp_path / "here/runs"
    monkeypatch.setenv(paths.HOME, "../home")
    assert paths.runs_folder(None) == tmp_path / "home/runs"
    assert paths.runs_folder("mine") == tmp_path / "here/mine"
    assert not (tmp_path / "home").exists()


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.HOME, "")
    assert paths.runs_folder() == tmp_path / "here/runs"


def test_search_spaces_in_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--search-spaces DIR"):
        paths.search_spaces_folder()
    places = ["prefix/share/esnac", "site", "here", "home"]  # worst first
    monkeypatch.setenv(paths.HOME, str(tmp_path / "home"))
    for place in places:
        folder = tmp_path / place / "search_spaces"
        folder.mkdir(parents=True)
        if place == "site":  # a folder beside the package is the checkout's only with its setup.cfg
            assert paths.search_spaces_folder() == tmp_path / places[0] / "search_spaces"
            (tmp_path / "site/setup.cfg").touch()
        assert paths.search_spaces_folder() == folder


def test_search_spaces_of_a_flag_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no folder"):
        paths.search_spaces_folder("missing")
    (tmp_path / "here/mine").mkdir()
    assert paths.search_spaces_folder("mine") == tmp_path / "here/mine"


def test_teachers_are_written_in_one_place_and_read_from_several(tmp_path: Path) -> None:
    shipped = tmp_path / "prefix/share/esnac/teachers"
    shipped.mkdir(parents=True)
    assert paths.teachers_folder() == tmp_path / "here/teachers"
    assert paths.teachers_folders() == [shipped]
    (tmp_path / "here/teachers").mkdir()
    assert paths.teachers_folders() == [tmp_path / "here/teachers", shipped]
    assert paths.teachers_folders("missing") == []


def test_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.data_folder(None) == tmp_path / "here/data"
    monkeypatch.setenv(paths.DATA, str(tmp_path / "sets"))
    assert paths.data_folder(None) == tmp_path / "sets"
    assert paths.data_folder("../other") == tmp_path / "other"


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.runs_folder("~/runs") == tmp_path / "runs"


@pytest.mark.parametrize("flag", ["", " ", "file", "file/below", "a\0b", "~no-such-user-here/runs"])
def test_impossible_flags(flag: str, tmp_path: Path) -> None:
    (tmp_path / "here/file").touch()
    for function in (paths.runs_folder, paths.teachers_folder, paths.data_folder):
        with pytest.raises(SettingsError, match=r"^--"):
            function(flag)


def test_an_impossible_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.HOME, str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=r"^\$ESNAC_HOME .* is not a folder"):
        paths.runs_folder()
