"""Where the folders outside the package lie. Only this file looks; only the command line asks.

Every answer is an absolute path, because Ray moves the working directory of a trial. No folder is
made here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from esnac.errors import SettingsError

HOME = "ESNAC_HOME"
DATA = "ESNAC_DATA"


def runs_folder(flag: str | Path | None = None) -> Path:
    """Where runs are kept: `flag`, `$ESNAC_HOME/runs`, or ./runs. May not exist yet."""
    return _writable("runs", "--runs", flag)


def teachers_folder(flag: str | Path | None = None) -> Path:
    """Where new teachers go: `flag`, `$ESNAC_HOME/teachers`, or ./teachers. May not exist yet."""
    return _writable("teachers", "--teachers", flag)


def teachers_folders(flag: str | Path | None = None) -> list[Path]:
    """Existing folders in which to look for a teacher or its recipe, the first hit wins.

    A `flag` stands alone; else `$ESNAC_HOME/teachers`, ./teachers, and those that came with esnac.
    """
    if flag is not None:
        folder = teachers_folder(flag)
        return [folder] if folder.is_dir() else []
    return [folder for folder in _places("teachers") if folder.is_dir()]


def search_spaces_folder(flag: str | Path | None = None) -> Path:
    """An existing folder of search spaces, found in the same order; `flag` must exist.

    Raises SettingsError that names the places when there is none.
    """
    if flag is not None:
        folder = _possible(flag, "--search-spaces")
        if not folder.is_dir():
            raise SettingsError(f"--search-spaces {flag}: there is no folder {folder}.")
        return folder
    places = _places("search_spaces")
    for folder in places:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, places))
    raise SettingsError(
        f"No folder of search spaces; looked in {looked}. Name it: --search-spaces DIR."
    )


def data_folder(flag: str | Path | None = None) -> Path:
    """The data root: `flag`, `$ESNAC_DATA`, or ./data. May not exist yet: a download makes it."""
    if flag is not None:
        return _possible(flag, "--data")
    if os.environ.get(DATA):
        return _possible(os.environ[DATA], f"${DATA}")
    return _possible("data", "--data")


def _writable(name: str, option: str, flag: str | Path | None) -> Path:
    if flag is not None:
        return _possible(flag, option)
    home = _home()
    return _possible(home / name, f"${HOME}") if home else _possible(name, option)


def _places(name: str) -> list[Path]:
    home = _home()
    places = [home / name] if home else []
    return list(dict.fromkeys([*places, Path.cwd() / name, *_shipped(name)]))


def _shipped(name: str) -> list[Path]:
    checkout = Path(__file__).resolve().parent.parent
    # Without its setup.cfg the parent of the package is site-packages, which holds others' folders.
    places = [checkout / name] if (checkout / "setup.cfg").is_file() else []
    return [*places, Path(sys.prefix).absolute() / "share" / "esnac" / name]


def _home() -> Path | None:
    value = os.environ.get(HOME)
    return _possible(value, f"${HOME}") if value else None


def _possible(path: str | Path, option: str) -> Path:
    """`path` made absolute. Raises SettingsError when no folder can ever be there."""
    text = str(path)
    if isinstance(path, str) and not text.strip():
        raise SettingsError(f"{option} is empty; it takes the path of a folder.")
    if "\0" in text:
        raise SettingsError(f"{option} {text!r} is no path.")
    try:
        folder = Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError:  # "~stranger": no such user
        raise SettingsError(f"{option} {path}: no home folder for that user.") from None
    for place in (folder, *folder.parents):
        if os.path.lexists(place) and not place.is_dir():
            raise SettingsError(f"{option} {path}: {place} is not a folder.")
    return folder
