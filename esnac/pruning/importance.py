"""What a channel is worth: one score for each unit of channels that are one and the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac.errors import SettingsError
from esnac.graphs.groups import ChannelGroups, makes_channels
from esnac.graphs.masks import effective_weights
from esnac.graphs.network import StudentNetwork
from esnac.runtime import evaluating

Importance = Literal["scales", "l1", "l2", "taylor", "random"]

#: Inputs B x ... and labels B.
Batches = Iterable[tuple[Tensor, Tensor]]


def by_scales(network: StudentNetwork, groups: ChannelGroups) -> np.ndarray:
    """|scale| of the batch norm that a unit passes (Liu et al. 2017); infinite without one.

    Of several the largest: all users of a channel must agree that it goes. Raises SettingsError for
    a network without such norms.
    """
    weights = effective_weights(network)
    scores = np.full(len(groups.group_of_unit), -np.inf)
    for number, layer in enumerate(network.graph.layers):
        if layer.kind == "batch_norm" and layer.attributes["affine"]:
            scale = weights[f"{layer.name}.weight"].abs().cpu().numpy()
            np.maximum.at(scores, groups.makes[number], scale)
    if not np.isfinite(scores).any():
        raise SettingsError(
            "The network has no batch norms with scales, by which slimming chooses channels. "
            "Use another importance (l1, l2, taylor, random) or another method."
        )
    return np.where(np.isfinite(scores), scores, np.inf)


def by_weights(network: StudentNetwork, groups: ChannelGroups, p: Literal[1, 2]) -> np.ndarray:
    """The p-norm of all weights that make a unit, over its mean in the group.

    Layers of different width and fan-in are comparable only after the division.
    """
    weights = effective_weights(network)
    scores = np.zeros(len(groups.group_of_unit))
    for number, layer in enumerate(network.graph.layers):
        if makes_channels(layer):
            rows = weights[f"{layer.name}.weight"].flatten(1).double().abs().pow(p).sum(1)
            np.add.at(scores, groups.makes[number], rows.cpu().numpy())
    scores **= 1 / p
    counts = np.maximum(np.bincount(groups.group_of_unit), 1)
    means = np.bincount(groups.group_of_unit, weights=scores) / counts
    mean: np.ndarray = means[groups.group_of_unit]
    return scores / np.where(mean > 0, mean, 1.0)


def by_taylor(
    network: StudentNetwork,
    groups: ChannelGroups,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> np.ndarray:
    """How much the loss would change without a unit, to first order; squared, mean over batches.

    At norms (scale * its gradient + shift * its gradient)^2 (Molchanov et al. 2019,
    arXiv 1906.10771, eq. 8, with gates), for units that pass none the sum of (weight * gradient)^2.
    """
    scores = np.zeros(len(groups.group_of_unit))
    count = 0
    with evaluating(network), torch.enable_grad():
        for inputs, labels in batches:
            network.zero_grad()
            loss(network(inputs), labels).backward()
            scores += _taylor(network, groups)
            count += 1
    network.zero_grad()
    if not count:
        raise SettingsError("Taylor importance needs at least one batch of images.")
    return scores / count


def _taylor(network: StudentNetwork, groups: ChannelGroups) -> np.ndarray:
    normed = np.zeros(len(groups.group_of_unit), dtype=bool)
    at_norms = np.zeros(len(normed))
    at_weights = np.zeros(len(normed))
    for number, layer in enumerate(network.graph.layers):
        module, units = network.get_submodule(layer.name), groups.makes[number]
        if layer.kind == "batch_norm" and layer.attributes["affine"]:
            norm = cast(nn.BatchNorm2d, module)
            normed[units] = True
            change = _product(norm.weight) + _product(norm.bias)
            np.add.at(at_norms, units, change.square().cpu().numpy())
        elif makes_channels(layer):
            rows = _product(_master(module)).flatten(1).square().sum(1)
            np.add.at(at_weights, units, rows.cpu().numpy())
    return np.where(normed, at_norms, at_weights)


def _product(parameter: Tensor) -> Tensor:
    """Each value times its gradient."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return (parameter * parameter.grad).detach()


def _master(module: nn.Module) -> Tensor:
    """The trained weight of a layer, under a mask if it has one."""
    if parametrize.is_parametrized(module, "weight"):
        return cast(Tensor, module.parametrizations["weight"].original)  # type: ignore[index, union-attr]
    return cast(Tensor, module.weight)


def at_random(groups: ChannelGroups, generator: torch.Generator) -> np.ndarray:
    """Uniform in [0, 1): the baseline that every importance has to beat."""
    return torch.rand(len(groups.group_of_unit), generator=generator, dtype=torch.float64).numpy()
