"""Run folders: `settings.json`, `journal.jsonl` and a folder per trial and finalist."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from esnac import files
from esnac.errors import EsnacError, RunError, nearest
from esnac.journal import Journal, read

SETTINGS = "settings.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"


def run_name(network: str, dataset: str, suffix: str) -> str:
    """`<network>-<dataset>-<suffix>` as a folder name.

    Characters of the first two that do not belong in a file name become `_` (`pkg.mod:fn`,
    `images:/some/path`). Raises RunError for a suffix that is empty or holds a path separator.
    """
    if not suffix or re.search(r"[/\\\x00-\x1f]", suffix):
        raise RunError(
            f"--suffix {suffix!r} cannot end a folder's name: use a word without path separators."
        )
    if len(suffix.encode()) > 80:
        raise RunError(f"--suffix is {len(suffix.encode())} bytes long; at most 80 fit.")
    return f"{files.safe_name(network)}-{files.safe_name(dataset)}-{suffix}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: `{"search.steps": (old, new)}`, sorted; a missing one is None.

    Both are compared as they read back from JSON, so a tuple equals a list. `{}` means the same.
    """
    before, after = dict(_flat(_plain(old))), dict(_flat(_plain(new)))
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def describe(different: Mapping[str, tuple[Any, Any]]) -> str:
    """What `compare` found, for people."""
    return ", ".join(f"{key} {old} there, {new} here" for key, (old, new) in different.items())


def list_runs(root: Path) -> list[Path]:
    """The run folders in `root`, by name; none when `root` does not exist."""
    if not root.is_dir():
        return []
    try:
        return sorted(path for path in root.iterdir() if path.name[0] != "." and _is_run(path))
    except OSError as error:
        raise RunError(f"Cannot read {root}: {files.reason(error)}.") from None


def find_run(root: Path, name: str) -> Path:
    """The folder of the run `name`: a name in `root`, or a path. RunError tells the nearest."""
    for path in (root / name, Path(name).absolute()) if name else ():
        if _is_run(path):
            return path
    known = [path.name for path in list_runs(root)]
    near = nearest(name, known)
    hint = f" Did you mean {near!r}?" if near else ""
    listing = f"Runs there: {', '.join(known)}." if known else "There are no runs there."
    raise RunError(f"No run {name!r} in {root}.{hint} {listing}")


class Run:
    """One run folder, made by `create`, `open` or `resume`.

    Open for writing it holds the run's lock until `close` (or the end of the process); two
    processes cannot write one journal. A reader takes no lock and changes nothing. The folders of
    trials and finalists are named here and made by those who fill them.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self.name = path.name
        self._lock = lock
        self._journal: Journal | None = None

    @staticmethod
    def check_new(root: Path, name: str) -> None:
        """Raises RunError when the run exists or its folder could not be made; makes nothing.

        For those who have costly work to do before `create`.
        """
        if os.path.lexists(root / name):
            raise _exists(root / name)
        place = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            what = "cannot be written" if place.is_dir() else "is not a folder"
            raise RunError(f"Cannot make the run {root / name}: {place} {what}.")

    @classmethod
    def create(cls, root: Path, name: str, settings: Mapping[str, Any]) -> Run:
        """A new run, open for writing. It appears whole, with its settings, or not at all.

        Raises RunError when it exists or `root` cannot be written.
        """
        root = root.absolute()
        path, temporary = root / name, root / f".new-{uuid.uuid4().hex[:12]}"
        cls.check_new(root, name)
        run = None
        try:
            root.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            run = cls(temporary, _take_lock(temporary))
            try:
                files.write_json(temporary / SETTINGS, settings)
            except EsnacError as error:
                raise RunError(f"Cannot make the run {path}. {error}") from None
            (temporary / JOURNAL).touch()
            os.rename(temporary, path)
            files.sync_folder(root)
        except OSError as error:
            _discard(temporary, run)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and path.exists():
                raise _exists(path) from None
            raise RunError(f"Cannot make the run {path}: {files.reason(error)}.") from None
        except BaseException:
            _discard(temporary, run)
            raise
        run.path, run.name = path, name
        run._journal = Journal(run.path / JOURNAL)
        return run

    @classmethod
    def open(cls, path: Path, write: bool = False) -> Run:
        """An existing run. For writing: locked, a half-written last line cut off.

        Raises RunError when there is no such run, another process writes it, or it is damaged.
        """
        path = path.absolute()
        if not _is_run(path):
            raise RunError(f"There is no run at {path}.")
        if not write:
            return cls(path)
        try:
            run = cls(path, _take_lock(path))
        except OSError as error:
            raise RunError(f"Cannot open {path} for writing: {files.reason(error)}.") from None
        try:
            run._journal = Journal(run.path / JOURNAL)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, root: Path, name: str) -> Run:
        """The run `name` in `root`, open for writing. Raises RunError when there is none."""
        if not _is_run(root / name):
            raise RunError(f"There is no run {root / name} to resume. Start it without --resume.")
        return cls.open(root / name, write=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings the run was created with."""
        path = self.path / SETTINGS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"Cannot read {path}: {files.reason(error)}.") from None
        except ValueError as error:
            raise RunError(f"{path} is not valid JSON ({error}).") from None
        if not isinstance(content, dict):
            raise RunError(f"{path} holds no JSON object.")
        return content

    def events(self) -> list[dict[str, Any]]:
        """The journal so far, checked. Raises RunError naming the line of a damaged one."""
        return read(self.path / JOURNAL)

    def append(self, event: str, **fields: Any) -> None:
        """Add one line; it is on the disk when this returns."""
        self.append_many([{"event": event, **fields}])

    def append_many(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add several lines in one write, see `Journal.append_many`."""
        if self._journal is None:
            raise RunError(f"The run {self.path} is not open for writing.")
        self._journal.append_many(events)

    def trial_folder(self, number: int) -> Path:
        """`trials/NNNN`: the trial's student and what belongs to it."""
        return self.path / "trials" / f"{number:04d}"

    def finalist_folder(self, index: int) -> Path:
        """`finalists/N`: the finalist's student as the stages left it."""
        return self.path / "finalists" / str(index)

    def close(self) -> None:
        """Give the lock back; may be called twice."""
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            os.close(self._lock)
        self._journal = self._lock = None

    def discard(self) -> None:
        """Closes the run and removes its folder."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _take_lock(folder: Path) -> int | None:
    """A handle that keeps the run's lock while open. Raises RunError if another process has it."""
    try:
        return files.lock(folder / LOCK)
    except files.LockedError as error:
        raise RunError(
            f"The run {folder} is being written by {error.owner}. Wait for it, or end it."
        ) from None


def _discard(folder: Path, run: Run | None) -> None:
    if run is not None:
        run.close()
    shutil.rmtree(folder, ignore_errors=True)


def _is_run(path: Path) -> bool:
    try:
        return (path / SETTINGS).is_file() or (path / JOURNAL).is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> RunError:
    return RunError(f"{path} exists. Continue it with --resume, or take another --suffix.")


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings, default=files.json_default))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
