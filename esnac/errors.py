"""Errors that a user can act on. The command line prints their message alone and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EsnacError(Exception):
    """Base of all errors raised on purpose; says what was expected, met, and what to do next."""


class UnknownNameError(EsnacError):
    """A name that no registry knows; the message carries the nearest and all known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        hint = did_you_mean(name, self.known)
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(self.known)}.")

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str]]]:
        # An exception is unpickled by calling its class with `args`, here the message: workers in
        # other processes could not report this error.
        return type(self), (self.kind, self.name, self.known)


class SettingsError(EsnacError):
    """A setting that does not exist, has the wrong type or a value out of range."""


class DataError(EsnacError):
    """Data that is missing, unreadable or unusable; names the file or the places searched."""


class WeightsError(EsnacError):
    """Weights that are missing, truncated or made for another network."""


class RunError(EsnacError):
    """A run folder that exists already, cannot be written, or whose journal is damaged."""


class UnsupportedLayerError(EsnacError):
    """An operation in a traced network that the graph has no layer for."""


class TrainingError(EsnacError):
    """A training that went wrong (for example a loss that is not finite)."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, upper case or lower, or None when nothing is close."""
    by_lower = {other.lower(): other for other in known}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'digits'?"` to append to a sentence, or "" when nothing is close."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""
