"""Pruners at work: which weights are zero from which epoch of a training on.

The masks lie on the network as parametrizations (`esnac.graphs.masks`), so neither momentum nor
weight decay brings a pruned weight back, and a checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac.errors import EsnacError, SettingsError
from esnac.graphs.masks import attach_masks, mask_of
from esnac.pruning import agp
from esnac.pruning.layers import aliases, matching, prunable
from esnac.pruning.magnitude import keep_largest, keep_n_of_m, zeros_of
from esnac.pruning.window import Window
from esnac.settings import require, require_used

#: What each method does not look at.
UNUSED = {
    "agp": ("n", "m"),
    "magnitude": ("initial", "end", "frequency", "n", "m"),
    "nm": ("sparsity", "initial", "end", "frequency"),
}


@dataclass(frozen=True)
class Pruner:
    """How the weights of some layers become sparse, each tensor by itself.

    "agp" raises the sparsity from `initial` to `sparsity` at each firing of the window; "magnitude"
    goes to `sparsity` at `start`; "nm" keeps the `n` largest of each `m` inputs from `start` on.
    `layers` and `exclude` are patterns of layers or weights (`esnac.pruning.layers`).
    """

    method: Literal["agp", "magnitude", "nm"] = "agp"
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    sparsity: float = 0.8
    #: As in the published schedules of MicroNet.
    initial: float = 0.05
    start: int = 0
    end: int = 8
    frequency: int = 1
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        require(0 <= self.sparsity < 1, "sparsity", "in [0, 1)", self.sparsity)
        require(self.m >= 2, "m", "at least 2", self.m)
        require(1 <= self.n < self.m, "n", f"in 1..{self.m - 1}, less than m", self.n)
        require_used(self, UNUSED[self.method], f"with method {self.method!r}")
        if self.method == "agp":
            agp.check(self.initial, self.sparsity, self.window)
        elif self.method == "magnitude":
            require(self.sparsity > 0, "sparsity", "greater than 0", self.sparsity)

    @property
    def window(self) -> Window:
        """What is not gradual fires once."""
        if self.method == "agp":
            return Window(self.start, self.end, self.frequency)
        return Window(self.start, self.start + 1)

    @property
    def final(self) -> float:
        """The sparsity after the last firing."""
        return 1 - self.n / self.m if self.method == "nm" else self.sparsity

    def level(self, epoch: int) -> float:
        """The sparsity in force at `epoch`."""
        if self.method == "agp":
            return agp.sparsity_at(epoch, self.initial, self.sparsity, self.window)
        return self.final if epoch >= self.start else 0.0

    def mask(self, weight: Tensor, epoch: int) -> Tensor:
        """What stays of `weight` at `epoch` (bool)."""
        if self.method == "nm":
            return keep_n_of_m(weight, self.n, self.m)
        return keep_largest(weight, self.level(epoch))


class Gradual:
    """Pruners on one network; `before_epoch` does what is due.

    All weights that will be pruned have a mask from the start, so that the keys of the state_dict
    never change. Masks are made anew from the weights at each firing, and what is zero stays so.
    Raises SettingsError when a pattern matches nothing, a weight falls to two pruners, or one is
    too small to lose a single value.
    """

    def __init__(self, network: nn.Module, pruners: Sequence[Pruner]) -> None:
        self.network = network
        self.of_weight = assign(network, pruners)
        weights = {name: masked_master(network, name) for name in self.of_weight}
        for name, pruner in self.of_weight.items():
            pruner.mask(weights[name], pruner.window.last)  # fits, or raises before any training
            if pruner.method != "nm" and not zeros_of(pruner.final, weights[name].numel()):
                raise SettingsError(
                    f"{name} has {weights[name].numel()} values: a sparsity of {pruner.final} "
                    "prunes none of them. Leave it out with exclude, or raise the sparsity."
                )
        attach_masks(network, {name: weight != 0 for name, weight in weights.items()})

    @property
    def settled(self) -> int:
        """The epoch of the last firing: from it on all final sparsities are in force."""
        return max(pruner.window.last for pruner in self.of_weight.values())

    def before_epoch(self, epoch: int) -> None:
        due = {n: p for n, p in self.of_weight.items() if epoch in p.window.firings}
        self._prune(due, epoch)

    def apply(self) -> None:
        """All final sparsities at once, without any training."""
        self._prune(self.of_weight, self.settled)

    def _prune(self, due: dict[str, Pruner], epoch: int) -> None:
        masks = {name: p.mask(masked_master(self.network, name), epoch) for name, p in due.items()}
        attach_masks(self.network, masks)


def assign(network: nn.Module, pruners: Sequence[Pruner]) -> dict[str, Pruner]:
    """The pruner of each weight, by the weight's name. Raises SettingsError as `Gradual` does."""
    if not pruners:
        raise SettingsError("No pruners: nothing would be pruned.")
    known = aliases(network, list(prunable(network)))
    found: dict[str, Pruner] = {}
    for pruner in pruners:
        for name in matching(known, pruner.layers, pruner.exclude):
            if name in found:
                raise SettingsError(
                    f"{name} is named twice, by layers = {list(found[name].layers)} and "
                    f"{list(pruner.layers)}. Leave it out of one of them with exclude."
                )
            found[name] = pruner
    return found


def masked_master(network: nn.Module, name: str) -> Tensor:
    """The trained values of a weight with its mask on, before any quantiser; detached."""
    path, _, tensor = name.rpartition(".")
    module = network.get_submodule(path)
    weight: Tensor = getattr(module, tensor)
    if parametrize.is_parametrized(module, tensor):
        chain = module.parametrizations[tensor]  # type: ignore[index]
        original = getattr(chain, "original", None)
        if original is None or original.shape != weight.shape:
            raise EsnacError(f"{name} is kept in another form than its values: it has no masters.")
        weight = original
    mask = mask_of(network, name)
    with torch.no_grad():
        return weight.detach().clone() if mask is None else mask(weight)
