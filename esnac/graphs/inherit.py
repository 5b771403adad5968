"""A student's first weights, cut out of its teacher's.

Each tensor of a student carries, channel by channel, the number of the teacher's channel it stands
for; a convolution then takes the rows and columns of those channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.groups import is_depthwise, makes_channels, shuffled
from esnac.graphs.moves import Moves
from esnac.graphs.space import Space

Selection = Literal["leading", "important"]


def inherit(
    space: Space,
    student: ArchGraph,
    moves: Moves,
    weights: Mapping[str, Tensor],
    selection: Selection = "leading",
) -> dict[str, Tensor]:
    """The student's state (keys "<layer name>.<tensor>") from the teacher's `weights`, same keys.

    `selection`: "leading" keeps the first channels of each group (Cao et al. 2019), "important"
    those with the largest L1 norm of the weights that make them. With channels in blocks (grouped
    convolutions, shuffles) every block keeps equally many.
    """
    scores = _scores(space, moves, weights) if selection == "important" else None
    return inherit_channels(space, student, best_ranks(space, moves.kept, scores), weights)


def inherit_channels(
    space: Space,
    student: ArchGraph,
    chosen: Sequence[np.ndarray],
    weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """As `inherit`, for the units `chosen`: for each group their ranks, ascending."""
    image = np.arange(space.graph.input_shape[0])
    made: list[np.ndarray] = []
    state: dict[str, Tensor] = {}
    for number, (old, new) in enumerate(zip(space.graph.layers, student.layers, strict=True)):
        read = _read(new, image, made, space.graph.layers)
        if new.kind != old.kind:  # removed
            made.append(read)
            continue
        make = _make(space, number, read, chosen)
        made.append(make)
        for name in _tensor_names(old, weights):
            tensor = weights[f"{old.name}.{name}"]
            state[f"{old.name}.{name}"] = _cut(old, new, tensor, read, make).clone()
    return state


def _tensor_names(layer: Layer, weights: Mapping[str, Tensor]) -> list[str]:
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [name for name in names if f"{layer.name}.{name}" in weights]


def _read(
    layer: Layer, image: np.ndarray, made: list[np.ndarray], teacher: tuple[Layer, ...]
) -> np.ndarray:
    """Teacher channels that the layer reads; of several summed inputs the first one's."""
    tensors = [image if i == INPUT else made[i] for i in layer.inputs]
    if layer.kind != "concat":
        return max(tensors, key=len)
    offsets = np.cumsum(
        [0] + [teacher[i].out_shape[0] if i != INPUT else len(image) for i in layer.inputs]
    )
    return np.concatenate([t + o for t, o in zip(tensors, offsets, strict=False)])


def _make(space: Space, number: int, read: np.ndarray, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Teacher channels that the layer makes, from those it reads."""
    layer, groups = space.graph.layers[number], space.groups
    if makes_channels(layer):
        units = groups.makes[number]
        owners, ranks = groups.group_of_unit[units], groups.rank_of_unit[units]
        keep = np.zeros(len(units), dtype=bool)
        for group in np.unique(owners):
            keep |= (owners == group) & np.isin(ranks, chosen[group])
        return np.flatnonzero(keep)
    if is_depthwise(layer):
        times = layer.out_shape[0] // layer.in_shape[0]
        return (read[:, None] * times + np.arange(times)).reshape(-1)
    if layer.kind == "flatten":
        area = math.prod(layer.in_shape[1:])
        return (read[:, None] * area + np.arange(area)).reshape(-1)
    if layer.kind == "slice":
        start, stop = layer.attributes["start"], layer.attributes["stop"]
        return read[(read >= start) & (read < stop)] - start
    if layer.kind == "channel_shuffle":
        count = layer.attributes["groups"]
        position = np.empty(layer.in_shape[0], dtype=np.int64)
        position[shuffled(np.arange(layer.in_shape[0]), count)] = np.arange(layer.in_shape[0])
        return position[shuffled(read, count)]
    return read


def _cut(old: Layer, new: Layer, tensor: Tensor, read: np.ndarray, make: np.ndarray) -> Tensor:
    """The part of one of the teacher's tensors that the student's layer needs."""
    if tensor.dim() == 0:  # number of batches a norm has seen
        return tensor
    rows = torch.from_numpy(make).to(tensor.device)
    if old.kind == "linear" and tensor.dim() == 2:
        return tensor[rows][:, torch.from_numpy(read).to(tensor.device)]
    if old.kind != "conv" or tensor.dim() == 1 or is_depthwise(old):
        return tensor[rows]
    parts = new.attributes["groups"]
    block = old.in_shape[0] // parts
    columns = torch.from_numpy(read % block).to(tensor.device).reshape(parts, -1)
    of_row = columns.repeat_interleave(len(make) // parts, dim=0)
    picked = tensor[rows]
    index = of_row[:, :, None, None].expand(-1, -1, *tensor.shape[2:])
    return picked.gather(1, index)


def best_ranks(
    space: Space, kept: Sequence[int], scores: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """For each group the ranks (ascending) of the `kept` units that score highest, or come first.

    `scores[g]` has one value for each unit of group g, by rank.
    """
    groups = space.groups
    chosen = []
    for group, keep in enumerate(kept):
        size, blocks = int(groups.sizes[group]), int(space.divisors[group])
        if size % blocks or keep % blocks:
            blocks = 1
        ranks = np.arange(size).reshape(blocks, -1)
        if scores is None:
            best = ranks[:, : keep // blocks]
        else:
            order = np.argsort(-scores[group].reshape(blocks, -1), axis=1, kind="stable")
            best = np.sort(np.take_along_axis(ranks, order[:, : keep // blocks], axis=1), axis=1)
        chosen.append(best.reshape(-1))
    return chosen


def _scores(space: Space, moves: Moves, weights: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Importance of each unit of each group, summed over groups that the moves join."""
    groups = space.groups
    unit_scores = np.zeros(len(groups.group_of_unit))
    for number, layer in enumerate(space.graph.layers):
        if number in moves.removed or not makes_channels(layer):
            continue
        norms = weights[f"{layer.name}.weight"].detach().flatten(1).float().norm(p=1, dim=1)
        np.add.at(unit_scores, groups.makes[number], norms.cpu().numpy())
    scores = [np.zeros(size) for size in groups.sizes]
    for group in range(len(groups)):
        units = groups.group_of_unit == group
        scores[group][groups.rank_of_unit[units]] = unit_scores[units]
    candidate = space.candidates([moves])
    labels = space.labels(candidate.removed, candidate.skips)[0]
    joint: dict[int, np.ndarray] = {}
    for group, label in enumerate(labels):
        joint[label] = joint.get(label, 0) + scores[group]
    return [joint[label] for label in labels]
