"""Teachers on disk, in `teachers/<network>-<dataset>/`.

`recipe.toml` says how to train, `card.json` what came out and of which data; the network's
state_dict is in `weights.safetensors`. Weights from elsewhere are read from safetensors or, with
`weights_only=True`, from a `.pt`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esnac import files
from esnac.errors import EsnacError, WeightsError
from esnac.settings import load_toml

WEIGHTS = "weights.safetensors"

#: Training settings by data set, for teachers without a recipe of their own.
_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 40, "batch_size": 64, "learning_rate": 0.1},
    "cifar10": {"epochs": 30, "batch_size": 128, "learning_rate": 0.2},
    "cifar100": {"epochs": 30, "batch_size": 128, "learning_rate": 0.2},
    "": {"epochs": 30, "batch_size": 64, "learning_rate": 0.05},
}
_RECIPE = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "one_cycle",
}


@dataclass(frozen=True)
class Card:
    """What is known of a teacher; `data` are the settings of its split, accuracies fractions."""

    network: str
    dataset: str
    accuracy: float
    validation_accuracy: float
    params: int
    macs: int
    data: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    sha256: str
    versions: dict[str, str]
    seconds: float


def folder_name(network: str, dataset: str, data: Mapping[str, Any]) -> str:
    """`<network>-<dataset>`, then what of the data settings is not the default and tells of images.

    A data set with a path gets the path's hash, for paths may look alike as file names.
    """
    from esnac.data import DataSettings
    from esnac.data.settings import content

    name = f"{files.safe_name(network)}-{files.safe_name(dataset)}"
    if ":" in dataset:
        name += "-" + hashlib.sha256(dataset.encode()).hexdigest()[:8]
    for key, default in content(asdict(DataSettings())).items():
        if data.get(key, default) != default:
            name += f"-{key}{data[key]}"
    return name


def recipe(folders: list[Path], network: str, dataset: str) -> dict[str, Any]:
    """Plain training settings: the teacher's `recipe.toml`, else the data set's own defaults."""
    name = folder_name(network, dataset, {})
    for folder in folders:
        path = folder / name / "recipe.toml"
        if path.is_file():
            return load_toml(path)
    return {**_RECIPE, **_RECIPES.get(dataset, _RECIPES[""])}


def save(folder: Path, network: nn.Module, card: Card) -> Card:
    """Writes weights, then the card with their checksum; returns that card.

    Raises EsnacError when the folder cannot be written.
    """
    import safetensors.torch

    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    content = safetensors.torch.save(state)  # save_file raises no OSError
    files.write(folder / WEIGHTS, lambda path: path.write_bytes(content), parents=True)
    card = Card(**{**asdict(card), "sha256": _sha256(folder / WEIGHTS)})
    files.write_json(folder / "card.json", asdict(card))
    return card


def find(folders: list[Path], name: str) -> Path | None:
    """The first folder that holds a finished teacher of that name (its card is written last)."""
    for folder in folders:
        if (folder / name / "card.json").is_file():
            return folder / name
    return None


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Holds a teacher's folder while it is filled; waits for another process that does so.

    Gives whether it had to wait. Raises EsnacError when the folder cannot be written. The lock's
    file stays: whoever removed it could take it from under the next one that waits.
    """
    lock, waited = folder / ".lock", False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = files.lock(lock)
        except files.LockedError as error:
            print(f"{error.owner} is training {folder}: waiting for it.", file=sys.stderr)
            handle, waited = files.lock(lock, wait=True), True
    except OSError as error:
        raise EsnacError(f"Cannot write {folder}: {files.reason(error)}.") from None
    try:
        yield waited
    finally:
        if handle is not None:
            os.close(handle)


def load(folder: Path, network: nn.Module) -> Card:
    """Fills `network` with the weights of a teacher folder.

    Raises WeightsError when files are missing, damaged or made for another network.
    """
    path = folder / WEIGHTS
    try:
        card = Card(**json.loads((folder / "card.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{folder / 'card.json'} is not a teacher's card ({error}).") from None
    if not path.is_file():
        raise WeightsError(f"No teacher weights at {path}. {_train(card)}")
    if _sha256(path) != card.sha256:
        raise WeightsError(
            f"{path} is damaged: its checksum is not the card's. {_train(card)} --force"
        )
    load_weights(path, network)
    return card


def load_weights(path: Path, network: nn.Module) -> None:
    """Fills `network` with a state_dict file (.safetensors, else a torch file).

    Raises WeightsError when the file is missing, truncated or made for another network.
    """
    state, own = _read(path), network.state_dict()
    if _all_wrapped(state) and not _all_wrapped(own):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong += [
        f"{key} is missing"
        for key in own
        # Files from before PyTorch 0.4.1 lack this one; it matters only where momentum is None.
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    wrong += [f"{key} is unknown" for key in state if key not in own]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"{path} holds weights of another network: {'; '.join(wrong[:3])}{more}. "
            "Check --network, and the data set's number of classes."
        )
    network.load_state_dict(state, strict=False)  # the keys are checked above


def _all_wrapped(state: Mapping[str, Tensor]) -> bool:
    """Whether every key has the prefix that DataParallel leaves behind."""
    return all(key.startswith("module.") for key in state)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"No weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is truncated or no weights file: {reason}") from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors and is not loaded, for safety. "
            "Save network.state_dict() alone, or convert it to safetensors."
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} is not a state_dict: a mapping of names to tensors is expected."
        )
    return dict(state)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _train(card: Card) -> str:
    return f"Train one: python -m esnac teacher --network {card.network} --dataset {card.dataset}"
