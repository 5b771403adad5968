"""Network slimming: norm scales driven to zero, then one threshold over all of them.

Liu et al. 2017, arXiv 1708.06519. The penalty strength * sum |scale| acts while training; channels
with the smallest scales are then taken out (`esnac.pruning.removal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esnac.errors import SettingsError, TrainingError
from esnac.graphs.inherit import best_ranks
from esnac.graphs.space import Space
from esnac.settings import require

#: How far a scale can move in the sparse training. Measured on digits: 3.3 leaves 64 % of the
#: scales near zero at no loss of accuracy, below 2 a threshold destroys the network; published runs
#: have 5 to 6.
REACH = 3.3

#: A scale below this does no work.
NEAR_ZERO = 0.01


def strength_for(rates: Iterable[float], momentum: float, reach: float = REACH) -> float:
    """The strength by which a scale can move by `reach` in a training with these rates.

    `rates` has the learning rate of each step of SGD: a constant gradient of size s moves a weight
    by s * sum(rates) / (1 - momentum).
    """
    total = sum(rates)
    require(total > 0, "learning_rate", "greater than 0 in some step", total)
    require(0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
    return reach * (1 - momentum) / total


def norm_scales(network: nn.Module) -> dict[str, nn.Parameter]:
    """The scales of all batch norms by name. Raises SettingsError for a network without any."""
    found = {
        f"{path}.weight": module.weight
        for path, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }
    if not found:
        raise SettingsError(
            "The network has no batch norms with scales: it cannot be slimmed by them. "
            "Use another importance (l1, l2, taylor, random) or another method."
        )
    return found


def penalty(scales: Iterable[Tensor], strength: float) -> Callable[[], Tensor]:
    """Gives strength * sum |scale|; its gradient at zero is zero."""
    require(strength > 0, "strength", "greater than 0", strength)
    listed = list(scales)

    def value() -> Tensor:
        return strength * torch.cat([scale.abs() for scale in listed]).sum()

    return value


def require_alive(scales: Iterable[Tensor], strength: float) -> None:
    """Raises TrainingError when all scales are near zero: nothing passes the network any more."""
    values = torch.cat([scale.detach().abs().flatten() for scale in scales])
    if values.max() < NEAR_ZERO:
        raise TrainingError(
            f"The network is dead: all {len(values)} scales of its norms are below {NEAR_ZERO}. "
            f"The strength {strength:.3g} of the penalty is too large for this training: "
            "give a smaller one, or train for more epochs at the same reach."
        )


def threshold(space: Space, scores: np.ndarray, sparsity: float, free: np.ndarray) -> float:
    """The score at int(sparsity * count) of all units in the groups `free` (G, bool), ascending.

    `scores` has one value for each unit (U). Raises SettingsError when no group is free, or
    when all score the same.
    """
    require(0 < sparsity < 1, "sparsity", "in (0, 1)", sparsity)
    sought = np.sort(scores[free[space.groups.group_of_unit]])
    if not len(sought):
        raise SettingsError(
            "No channels of this network can go: all are protected, part of its input or output, "
            "or read before a norm. Protect fewer layers, or take another importance than scales."
        )
    if sought[0] == sought[-1]:
        raise SettingsError(
            "All channels that can go have the same importance, so none is to be preferred. Is the "
            "network trained? Otherwise take another importance."
        )
    return float(sought[int(sparsity * len(sought))])


def choose(
    space: Space, scores: np.ndarray, sparsity: float, free: np.ndarray, minimum: int = 1
) -> list[np.ndarray]:
    """The ranks of the units that stay, for each group (G), ascending.

    What scores above the `threshold` stays. A group keeps at least `minimum` units (its best ones),
    and a multiple of its divisor. Raises SettingsError when nothing would go.
    """
    require(minimum >= 1, "minimum", "at least 1", minimum)
    limit = threshold(space, scores, sparsity, free)
    groups, of_group = space.groups, _by_group(space, scores)
    kept = groups.sizes.copy()
    for group in np.flatnonzero(free):
        above = max(int((of_group[group] > limit).sum()), minimum)
        step = int(space.steps[group])
        kept[group] = min(-(-above // step) * step, groups.sizes[group])
    if (kept == groups.sizes).all():
        raise SettingsError(
            f"A sparsity of {sparsity} with at least {minimum} channels a layer removes nothing."
        )
    return best_ranks(space, kept.tolist(), of_group)


def saved_by_minimum(
    space: Space, scores: np.ndarray, sparsity: float, free: np.ndarray
) -> list[int]:
    """The groups that the threshold alone would have emptied."""
    limit, of_group = threshold(space, scores, sparsity, free), _by_group(space, scores)
    return [int(g) for g in np.flatnonzero(free) if not (of_group[g] > limit).any()]


def _by_group(space: Space, scores: np.ndarray) -> list[np.ndarray]:
    """Scores of units (U) as one array for each group, by rank."""
    groups = space.groups
    found = [np.zeros(size) for size in groups.sizes]
    for score, group, rank in zip(scores, groups.group_of_unit, groups.rank_of_unit, strict=True):
        found[group][rank] = score
    return found
