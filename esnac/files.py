"""Files that are replaced whole (a reader, or a crash, meets the old content or the new); locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esnac.errors import EsnacError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockedError(EsnacError):
    """Another process holds a lock; `owner` says which, for people."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is held by {owner}. Wait for it, or end it.")
        self.owner = owner


def safe_name(name: str) -> str:
    """`name` with all that does not belong in a file name turned into `_`; at most 80 characters.

    Of a long name the end stays, which tells paths apart.
    """
    tame = re.sub(r"[^A-Za-z0-9_.+=]+", "_", name).strip("._")
    return tame[-80:].strip("._") or "unnamed"


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Makes `path` what `write(temporary)` writes under a name of its own in the same folder.

    The content is on the disk before the name is. When `write` raises, `path` is as it was and the
    error goes on to the caller; OSError when the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(path: Path, save: Callable[[Path], object], *, parents: bool = False) -> None:
    """As `replace`, but raises EsnacError when `path` cannot be written.

    With `parents` its folder is made if there is none.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, save)
    except OSError as error:
        raise EsnacError(f"Cannot write {path}: {reason(error)}.") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file by `replace`. Raises EsnacError."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON by `replace`. Raises EsnacError."""
    write_text(path, json.dumps(content, indent=1, default=json_default, allow_nan=False) + "\n")


def json_default(value: Any) -> Any:
    """Paths as text, numbers of numpy and torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written to JSON")


def reason(error: OSError) -> str:
    """What went wrong, for the end of a sentence."""
    return (error.strerror or str(error)).lower()


def lock(path: Path, wait: bool = False) -> int | None:
    """A handle that holds the lock file `path` while it is open; None where there are no locks.

    Raises LockedError when another process holds it and the caller does not want to `wait`;
    OSError when the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        owner = os.read(handle, 20).decode("ascii", "replace").strip()
        os.close(handle)
        raise LockedError(path, f"process {owner}" if owner else "another process") from None
    except OSError as error:
        os.close(handle)
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks: start a run only once.", stacklevel=2
        )
        return None
    except BaseException:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle
