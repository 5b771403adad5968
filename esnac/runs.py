"""Run folders: `settings.json`, `journal.jsonl` and a folder per trial and finalist.

The journal is the truth. Each line is a JSON object with `time` (ISO 8601, UTC) and `event`; it is
appended in one write, flushed and fsynced, by the one process that holds the run's lock. Resuming
is replaying. A last line without its newline that does not read is ignored, and cut off when the
run is opened for writing; any other line that does not read, or lacks keys, is an error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from esnac import files
from esnac.errors import RunError, nearest

SETTINGS = "settings.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"

#: States of a trial: the first opens it, one of the others closes it.
PROPOSED, DONE, FAILED = "PROPOSED", "DONE", "FAILED"

#: Keys without which a line cannot be replayed or reported. Events not named here need none.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "run": ("network", "dataset", "seed", "engine", "versions"),
    "teacher": ("accuracy", "validation_accuracy", "params", "macs"),
    "trial": ("trial", "state"),
    f"trial {PROPOSED}": ("step", "moves", "params", "macs", "ratio"),
    f"trial {DONE}": ("accuracy", "params", "macs", "ratio", "f", "seconds"),
    f"trial {FAILED}": ("reason", "seconds"),
    "finalists": ("trials",),
    "stage": (
        *("index", "trial", "stage", "accuracy", "validation_accuracy", "f"),
        *("params", "macs", "ratio", "path", "seconds"),
    ),
    "failure": ("index", "trial", "stage", "reason"),
}

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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
    return f"{file_name(network)}-{file_name(dataset)}-{suffix}"


def file_name(name: str) -> str:
    """`name` with all that does not belong in a file name turned into `_`; at most 80 characters.

    Of a long name the end stays, which tells paths apart.
    """
    tame = re.sub(r"[^A-Za-z0-9_.+=]+", "_", name).strip("._")
    return tame[-80:].strip("._") or "unnamed"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: `{"search.steps": (old, new)}`, sorted; a missing one is None.

    Both are compared as they read back from JSON, so a tuple equals a list. `{}` means the same.
    """
    before, after = dict(_flat(_plain(old))), dict(_flat(_plain(new)))
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically: whoever reads `path` sees the old or the new file."""
    write_text(path, json.dumps(content, indent=1, default=_default, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (temporary name, fsync, rename). Raises RunError."""
    try:
        files.replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise RunError(f"Cannot write {path}: {_reason(error)}.") from None


def list_runs(root: Path) -> list[Path]:
    """The run folders in `root`, by name; none when `root` does not exist."""
    if not root.is_dir():
        return []
    try:
        return sorted(path for path in root.iterdir() if path.name[0] != "." and _is_run(path))
    except OSError as error:
        raise RunError(f"Cannot read {root}: {_reason(error)}.") from None


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
        self._journal: int | None = None
        self._states: dict[int, str] = {}

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
            write_json(temporary / SETTINGS, settings)
            (temporary / JOURNAL).touch()
            os.rename(temporary, path)
            files.sync_folder(root)
        except OSError as error:
            _discard(temporary, run)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and path.exists():
                raise _exists(path) from None
            raise RunError(f"Cannot make the run {path}: {_reason(error)}.") from None
        except BaseException:
            _discard(temporary, run)
            raise
        run.path, run.name = path, name
        run._open_journal()
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
            raise RunError(f"Cannot open {path} for writing: {_reason(error)}.") from None
        try:
            run._open_journal()
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
            raise RunError(f"Cannot read {path}: {_reason(error)}.") from None
        except ValueError as error:
            raise RunError(f"{path} is not valid JSON ({error}).") from None
        if not isinstance(content, dict):
            raise RunError(f"{path} holds no JSON object.")
        return content

    def events(self) -> list[dict[str, Any]]:
        """The journal so far, checked. Raises RunError naming the line of a damaged one."""
        return _read_journal(self.path / JOURNAL)[0]

    def append(self, event: str, **fields: Any) -> None:
        """Add one line; it is on the disk when this returns."""
        self.append_many([{"event": event, **fields}])

    def append_many(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add several lines (each with `event`) in one write and one fsync.

        A crash in between leaves the first few of them whole. Raises RunError, with the journal
        unchanged, when it cannot be written, an event lacks keys or a trial would go through states
        out of order.
        """
        if self._journal is None:
            raise RunError(f"The run {self.path} is not open for writing.")
        states, lines = dict(self._states), []
        for event in events:
            _advance(states, event, "New line")
            if missing := _missing(event):
                raise RunError(f"New line: {_kind(event)!r} lacks {missing}.")
            line = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), **event}
            lines.append(json.dumps(line, default=_default, allow_nan=False) + "\n")
        if lines:
            self._write("".join(lines).encode())
        self._states = states

    def trial_folder(self, number: int) -> Path:
        """`trials/NNNN`: the trial's student and what belongs to it."""
        return self.path / "trials" / f"{number:04d}"

    def finalist_folder(self, index: int) -> Path:
        """`finalists/N`: the finalist's student as the stages left it."""
        return self.path / "finalists" / str(index)

    def close(self) -> None:
        """Give the lock back; may be called twice."""
        for handle in (self._journal, self._lock):
            if handle is not None:
                os.close(handle)
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

    def _open_journal(self) -> None:
        path = self.path / JOURNAL
        try:
            self._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            events, good, complete = _read_journal(path)
            if good < os.fstat(self._journal).st_size:
                os.ftruncate(self._journal, good)
            if not complete:
                self._write(b"\n")
        except OSError as error:
            raise RunError(f"Cannot open {path} for writing: {_reason(error)}.") from None
        for event in events:
            _advance(self._states, event, str(path))

    def _write(self, content: bytes) -> None:
        assert self._journal is not None
        size = os.fstat(self._journal).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._journal, rest) :]
            os.fsync(self._journal)
        except OSError as error:
            with contextlib.suppress(
                OSError
            ):  # a full disk: leave no half line before the next one
                os.ftruncate(self._journal, size)
            raise RunError(f"Cannot write {self.path / JOURNAL}: {_reason(error)}.") from None


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int, bool]:
    """Events, the bytes that hold them, and whether the last of them ends in a newline."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0, True
    except OSError as error:
        raise RunError(f"Cannot read {path}: {_reason(error)}.") from None
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    events: list[dict[str, Any]] = []
    states: dict[int, str] = {}
    good = 0
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            if not line.endswith(b"\n"):  # half-written when the process or the machine died
                break
            raise _damaged(path, number, "is not JSON") from None
        if not isinstance(event, dict):
            raise _damaged(path, number, "is no JSON object")
        if not isinstance(event.get("event"), str):
            raise _damaged(path, number, "has no 'event'")
        _advance(states, event, f"{path}, line {number}")
        if missing := _missing(event):
            raise _damaged(path, number, f"({_kind(event)}) lacks {missing}")
        events.append(event)
        good += len(line)
    return events, good, not events or content[good - 1 : good] == b"\n"


def _kind(event: Mapping[str, Any]) -> str:
    return f"trial {event['state']}" if event["event"] == "trial" else str(event["event"])


def _missing(event: Mapping[str, Any]) -> str:
    """The keys that a line of its kind needs and this one lacks, for people; "" if none."""
    needed = dict.fromkeys((*_KEYS.get(event["event"], ()), *_KEYS.get(_kind(event), ())))
    return ", ".join(repr(key) for key in needed if key not in event)


def _advance(states: dict[int, str], event: Mapping[str, Any], where: str) -> None:
    """Follow a trial's state. Raises RunError unless it is PROPOSED once, then closed once."""
    if event.get("event") != "trial":
        return
    trial, state = event.get("trial"), event.get("state")
    if not isinstance(trial, int) or isinstance(trial, bool) or trial < 0:
        raise RunError(f"{where}: a trial's line needs its number; got trial={trial!r}.")
    if state not in (PROPOSED, DONE, FAILED):
        raise RunError(
            f"{where}: trial {trial} is {state!r}, expected {PROPOSED}, {DONE} or {FAILED}."
        )
    before = states.get(trial)
    if (before is None) != (state == PROPOSED) or before in (DONE, FAILED):
        was = f"it was {before} already" if before else f"it was never {PROPOSED}"
        raise RunError(f"{where}: trial {trial} is {state}, but {was}. Remove the wrong line.")
    states[trial] = state


def _take_lock(folder: Path) -> int | None:
    """A handle that keeps the lock while open. Raises RunError when another process has it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return None
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 20).decode("ascii", "replace").strip()
        os.close(handle)
        process = f"process {owner}" if owner else "another process"
        raise RunError(
            f"The run {folder} is being written by {process}. Wait for it, or end it."
        ) from None
    except OSError as error:
        os.close(handle)
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{folder} is on a file system without locks: start a run only once.", stacklevel=2
        )
        return None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


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


def _damaged(path: Path, number: int, what: str) -> RunError:
    return RunError(
        f"{path}, line {number} {what}. The journal is damaged: repair or remove that line, "
        "or start again with another --suffix."
    )


def _plain(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings, default=_default))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _default(value: Any) -> Any:
    """Paths as text, numbers of numpy and torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written to JSON")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
