"""The state of an interrupted training: one file, replaced after every epoch."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esnac import files
from esnac.errors import RunError

FILE = "checkpoint.pt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the epochs from `next_epoch` on depend on; schedule and random numbers are
    functions of the epoch and need no state.

    `fingerprint` tells settings, seeds, data and shapes apart. `best` are the kept weights, or None
    where the last ones are kept. `history` holds one plain dict per finished epoch.
    """

    fingerprint: str
    next_epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    best: dict[str, Tensor] | None
    best_epoch: int
    best_accuracy: float
    history: list[dict[str, Any]]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder`/checkpoint.pt under a temporary name, then renames it. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / FILE, lambda path: torch.save(vars(checkpoint), path))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = str(error).splitlines()[0]
        raise RunError(f"Cannot write a checkpoint to {folder}: {reason}.") from None


def load(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The checkpoint in `folder`, on the CPU; no pickled objects are loaded.

    None if there is none, and with a logged warning if it is damaged or of another training; that
    one is replaced after the next epoch.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, pickle.UnpicklingError):
        log.warning("%s is damaged: training starts from the beginning.", path)
        return None
    if found.fingerprint != fingerprint:
        log.warning("%s is of another training: this one starts from the beginning.", path)
        return None
    return found
