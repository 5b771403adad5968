"""One file that says what acts in which epoch of a training: pruners, quantisers, penalties, rate.

    epochs = 12

    [[pruners]]
    layers = ["conv1"]
    sparsity = 0.3

    [[regularizers]]
    kind = "scales"
    strength = 0.001
    end = 6

    [[quantizers]]
    method = "lsq"
    weights = 4
    start = 8

    [[learning_rate]]
    factor = 0.9
    start = 6
    end = 12

What is written here is checked against the network before anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from esnac.errors import SettingsError
from esnac.pruning.gradual import Pruner, assign
from esnac.pruning.layers import aliases, matching, prunable
from esnac.pruning.slimming import norm_scales
from esnac.pruning.window import Window
from esnac.settings import build, load_toml, require, to_plain

#: Of the rows of a dry run.
HEADER = ("epoch", "what", "value", "weights", "which")

#: The tables of a file.
KINDS = ("pruners", "quantizers", "regularizers", "learning_rate")


@dataclass(frozen=True)
class Regularizer:
    """strength * (sum of |scale| of batch norms | sum of |weight| | sum of the norms of filters).

    Acts in all steps of the epochs at which its window fires.
    """

    strength: float
    kind: Literal["scales", "l1", "filters"] = "scales"
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    start: int = 0
    #: None: to the end of the training.
    end: int | None = None
    frequency: int = 1

    def __post_init__(self) -> None:
        require(self.strength > 0, "strength", "greater than 0", self.strength)


@dataclass(frozen=True)
class QuantizerEntry:
    """The layers compute with few bits in the epochs of the window, and from its last firing on.

    Without `end` that is from `start` on. `method`, `weights` and `activations` (bits; None: float)
    are those of the stage `quantize`.
    """

    method: Literal["lsq", "dorefa", "pact", "qd"] = "lsq"
    weights: int = 4
    activations: int | None = None
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    start: int = 0
    #: First epoch after the window; None: it fires once.
    end: int | None = None
    frequency: int = 1

    def __post_init__(self) -> None:
        for name in ("weights", "activations"):
            bits = getattr(self, name)
            unset = bits is None and name == "activations"
            require(unset or 1 <= bits <= 8, name, "1 to 8 bits", bits)
        if self.end is None and self.frequency != 1:
            raise SettingsError("A quantizer with a frequency needs an end: it fires once without.")

    @property
    def window(self) -> Window:
        end = self.start + 1 if self.end is None else self.end
        return Window(self.start, end, self.frequency)

    def acts(self, epoch: int) -> bool:
        return epoch in self.window.firings or epoch >= self.window.last


@dataclass(frozen=True)
class RateEntry:
    """At each firing the learning rate is multiplied by `factor`, on top of the training's own."""

    factor: float
    start: int = 0
    end: int | None = None
    frequency: int = 1

    def __post_init__(self) -> None:
        require(self.factor > 0, "factor", "greater than 0", self.factor)


@dataclass(frozen=True)
class Schedule:
    """All entries of one file. Raises SettingsError for what never fires, or not in time."""

    epochs: int
    pruners: tuple[Pruner, ...] = ()
    quantizers: tuple[QuantizerEntry, ...] = ()
    regularizers: tuple[Regularizer, ...] = ()
    learning_rate: tuple[RateEntry, ...] = ()

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        if not (self.pruners or self.quantizers or self.regularizers or self.learning_rate):
            raise SettingsError(
                "The schedule is empty: give it [[pruners]], [[quantizers]], [[regularizers]] or "
                "[[learning_rate]]."
            )
        for kind in KINDS:
            for number, entry in enumerate(getattr(self, kind)):
                self.window(entry).check_fits(self.epochs, f"{kind}[{number}]")

    def window(self, entry: Pruner | QuantizerEntry | Regularizer | RateEntry) -> Window:
        """The epochs at which an entry fires."""
        if isinstance(entry, Pruner | QuantizerEntry):
            return entry.window
        end = self.epochs if entry.end is None else entry.end
        return Window(entry.start, end, entry.frequency)

    def rate(self, epoch: int) -> float:
        """The factor on the learning rate at `epoch`."""
        factor = 1.0
        for entry in self.learning_rate:
            factor *= entry.factor ** sum(e <= epoch for e in self.window(entry).firings)
        return factor

    @property
    def settled(self) -> int:
        """From this epoch on all pruners and quantisers act in full."""
        entries: list[Pruner | QuantizerEntry] = [*self.pruners, *self.quantizers]
        return max((entry.window.last for entry in entries), default=0)


def load(path: Path) -> Schedule:
    """Raises SettingsError for a file that is missing, malformed or says what cannot be."""
    return build(Schedule, load_toml(path), where=str(path))


def to_toml(schedule: Schedule) -> str:
    """The text of a file that `load` reads back."""
    lines = [f"epochs = {schedule.epochs}"]
    for kind in KINDS:
        for entry in getattr(schedule, kind):
            lines += ["", f"[[{kind}]]"]
            for key, value in to_plain(entry).items():
                if value is not None:  # numbers, text and lists look alike in JSON and TOML
                    lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def targets(network: nn.Module, entry: Pruner | QuantizerEntry | Regularizer) -> list[str]:
    """The weights (or norm scales) on which an entry acts. Raises SettingsError."""
    if isinstance(entry, Regularizer) and entry.kind == "scales":
        names = list(norm_scales(network))
    else:
        names = list(prunable(network))
    return matching(aliases(network, names), entry.layers, entry.exclude)


def check(network: nn.Module, schedule: Schedule) -> None:
    """Raises SettingsError for patterns without a match and layers that are named twice."""
    if schedule.pruners:
        assign(network, schedule.pruners)
    quantized: set[str] = set()
    for entry in schedule.quantizers:
        names = targets(network, entry)
        if twice := sorted(quantized.intersection(names)):
            raise SettingsError(f"{twice[0]} is named twice, by two quantizers.")
        quantized.update(names)
    penalised: dict[str, set[str]] = {}
    for regularizer in schedule.regularizers:
        known, names = penalised.setdefault(regularizer.kind, set()), targets(network, regularizer)
        if twice := sorted(known.intersection(names)):
            raise SettingsError(f"{twice[0]} is named twice, by two {regularizer.kind} penalties.")
        known.update(names)


def penalty(network: nn.Module, schedule: Schedule) -> Callable[[int], Tensor] | None:
    """The sum of all penalties at an epoch, or None without regularizers."""
    if not schedule.regularizers:
        return None
    named = [(entry, targets(network, entry)) for entry in schedule.regularizers]

    def value(epoch: int) -> Tensor:
        total = torch.zeros((), device=next(network.parameters()).device)
        for entry, names in named:
            if epoch in schedule.window(entry).firings:
                total = total + entry.strength * _size(entry.kind, _tensors(network, names))
        return total

    return value


def firings(network: nn.Module, schedule: Schedule) -> list[tuple[str, ...]]:
    """Rows of text for a dry run: epoch, what acts, its value, on how many weights, which.

    Raises as `check`.
    """
    check(network, schedule)
    rows: list[tuple[str, ...]] = [HEADER]
    for epoch in range(schedule.epochs):
        for entry in schedule.pruners:
            if epoch in entry.window.firings:
                value = f"{entry.level(epoch):.4f}"
                rows.append(row(epoch, f"prune {entry.method}", value, targets(network, entry)))
        for quantizer in schedule.quantizers:
            if epoch in quantizer.window.firings:
                inputs = "" if quantizer.activations is None else f"/{quantizer.activations}"
                bits = f"{quantizer.weights}{inputs} bit"
                names = targets(network, quantizer)
                rows.append(row(epoch, f"quantize {quantizer.method}", bits, names))
        for penal in schedule.regularizers:
            if epoch in schedule.window(penal).firings:
                names = targets(network, penal)
                rows.append(row(epoch, f"penalty {penal.kind}", f"{penal.strength:g}", names))
        if any(epoch in schedule.window(entry).firings for entry in schedule.learning_rate):
            rows.append((str(epoch), "learning rate", f"x {schedule.rate(epoch):.4g}", "", ""))
    return rows


def row(epoch: int | str, what: str, value: str, names: list[str]) -> tuple[str, ...]:
    which = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return str(epoch), what, value, str(len(names)), which


def _tensors(network: nn.Module, names: Iterable[str]) -> list[Tensor]:
    found = []
    for name in names:
        path, _, tensor = name.rpartition(".")
        found.append(getattr(network.get_submodule(path), tensor))
    return found


def _size(kind: str, weights: list[Tensor]) -> Tensor:
    if kind == "filters":
        parts = [weight.flatten(1).norm(dim=1).sum() for weight in weights]
    else:
        parts = [weight.abs().sum() for weight in weights]
    return torch.stack(parts).sum()
