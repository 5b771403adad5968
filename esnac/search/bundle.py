"""What a worker on another machine needs to evaluate trials, as plain data and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esnac.data.arrays import pack, to_array, to_tensor, unpack
from esnac.distillation.targets import TeacherTargets
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import StudentNetwork
from esnac.search.earlier import space_of
from esnac.search.evaluation import Evaluator, SeededTargets
from esnac.search_spaces import SpaceSettings
from esnac.settings import build, to_plain
from esnac.training import TrainingSettings


@dataclass(frozen=True)
class Bundle:
    """Arrays that workers of one node share in its memory, and settings as plain values.

    `data`: as `data.arrays.pack` makes it. `targets`: the teacher's logits (N x classes) by epoch;
    none for streamed images, of which the workers ask the teacher themselves.
    """

    graph: str
    space: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    data: Mapping[str, Any]
    targets: Mapping[int, np.ndarray]
    targets_seed: int
    training: Mapping[str, Any]
    seed: int

    @classmethod
    def of(
        cls,
        evaluator: Evaluator,
        space: SpaceSettings,
        targets: Mapping[int, Tensor | Callable[[Tensor], Tensor]],
    ) -> Bundle:
        """`targets`: those of all epochs that an evaluation takes."""
        stored = {epoch: given for epoch, given in targets.items() if isinstance(given, Tensor)}
        # Without augmentation they are one tensor, which is to travel once.
        logits = {id(tensor): to_array(tensor) for tensor in stored.values()}
        return cls(
            graph=evaluator.space.graph.to_json(),
            space=to_plain(space),
            weights={name: to_array(tensor) for name, tensor in evaluator.weights.items()},
            data=pack(evaluator.data),
            targets={epoch: logits[id(tensor)] for epoch, tensor in stored.items()},
            targets_seed=evaluator.targets.seed,
            training=to_plain(evaluator.training),
            seed=evaluator.seed,
        )

    def evaluator(self, device: torch.device, folder: Callable[[int], Path]) -> Evaluator:
        """An evaluator on `device` that leaves students in `folder(number)`."""
        space = build(SpaceSettings, self.space)
        graph = ArchGraph.from_json(self.graph)
        weights = {name: to_tensor(array) for name, array in self.weights.items()}
        data, training = unpack(self.data).to(device), build(TrainingSettings, self.training)
        targets: SeededTargets
        if data.streamed:
            teacher = StudentNetwork(graph, weights).eval().to(device)
            targets = TeacherTargets(teacher, data, self.targets_seed, device, training.precision)
        else:
            given = {epoch: to_tensor(logits).to(device) for epoch, logits in self.targets.items()}
            targets = GivenTargets(self.targets_seed, given)
        return Evaluator(
            space=space_of(graph, space),
            weights=weights,
            data=data,
            targets=targets,
            training=training,
            selection=space.inherit,
            seed=self.seed,
            device=device,
            folder=folder,
        )


@dataclass(frozen=True)
class GivenTargets:
    """The teacher's logits (N x classes) by epoch, computed elsewhere under augmentation `seed`."""

    seed: int
    logits: Mapping[int, Tensor]

    def epoch(self, epoch: int) -> Tensor:
        return self.logits[epoch]
