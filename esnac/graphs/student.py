"""A student on disk: `architecture.json` and `weights.safetensors` in a folder.

Needs neither pickle nor the class of the network it was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from esnac import files
from esnac.errors import EsnacError, WeightsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import Preparation, StudentNetwork

ARCHITECTURE = "architecture.json"
WEIGHTS = "weights.safetensors"
#: Key of the weights file's metadata under which the network's `Preparation` lies as JSON.
PREPARATION = "preparation"
#: What a student is made of.
FILES = (ARCHITECTURE, WEIGHTS)
#: Files of a student's folder, their bytes by name.
Files = dict[str, bytes]

_PLAIN_NAME = re.compile(r"[^./\\\0][^/\\\0]*")


def save(folder: str | Path, network: StudentNetwork) -> None:
    """Writes both files, each under a temporary name that is then renamed.

    The folder is made if there is none; a student in it is replaced. Raises EsnacError when the
    folder cannot be written.
    """
    folder = Path(folder)
    weights = {
        key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()
    }
    known = network.preparation
    about = None if known is None else {PREPARATION: json.dumps(asdict(known))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = network.graph.to_json()
        files.replace(folder / ARCHITECTURE, lambda path: path.write_text(text, encoding="utf-8"))
        files.replace(
            folder / WEIGHTS, lambda path: safetensors.torch.save_file(weights, path, about)
        )
    except (OSError, safetensors.SafetensorError) as error:
        raise EsnacError(f"Cannot write a student to {folder} ({_line(error)}).") from None


def load(folder: str | Path) -> StudentNetwork:
    """The student in eval mode on the CPU.

    Raises EsnacError when the architecture is missing or damaged, WeightsError when the weights
    are missing, truncated or those of another architecture.
    """
    folder = Path(folder)
    graph, weights, known = read(folder)
    try:
        network = StudentNetwork(graph, weights).eval()
    except WeightsError as error:
        raise WeightsError(
            f"{folder / WEIGHTS} does not fit {folder / ARCHITECTURE}: {_line(error)} "
            "Put the two files of one student together."
        ) from None
    except EsnacError as error:
        raise EsnacError(f"{folder / ARCHITECTURE}: {_line(error)}") from None
    network.preparation = known
    return network


def read(folder: str | Path) -> tuple[ArchGraph, dict[str, Tensor], Preparation | None]:
    """What the two files hold, not yet put together. Raises as `load` does."""
    folder = Path(folder)
    graph = _read_architecture(folder / ARCHITECTURE)
    path = folder / WEIGHTS
    try:
        weights = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
    except FileNotFoundError:
        raise WeightsError(
            f"No student weights at {path}. Copy the whole student folder or train it again."
        ) from None
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged ({_line(error)}). "
            "Copy the student folder again or train it again."
        ) from None
    return graph, weights, _preparation(about, path)


def read_files(folder: Path) -> Files:
    """The files of a student and what lies beside it, to send them to another machine.

    Folders and hidden files (those that are being written) stay behind.
    """
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    }


def write_files(folder: Path, content: Files) -> None:
    """What `read_files` read, in another folder; each file under a temporary name first.

    Raises EsnacError for a name that would lie elsewhere, before anything is written.
    """
    for name in content:
        if not _PLAIN_NAME.fullmatch(name):
            raise EsnacError(f"{name!r} is no plain file name: nothing is written to {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in content:
        files.replace(folder / name, partial(Path.write_bytes, data=content[name]))


def _preparation(about: Mapping[str, str], path: Path) -> Preparation | None:
    if PREPARATION not in about:
        return None
    try:
        plain = json.loads(about[PREPARATION])
        return Preparation(**{key: tuple(values) for key, values in plain.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: its note on inputs is damaged ({_line(error)}).") from None


def _read_architecture(path: Path) -> ArchGraph:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EsnacError(
            f"No student at {path.parent}: {path.name} is missing. Give the folder of a student, "
            "for example runs/<run>/finalists/0."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EsnacError(f"{path} cannot be read ({_line(error)}).") from None
    return ArchGraph.from_json(text, path)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
