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
from esnac.graphs.arch_graph import ArchGraph
from esnac.search.earlier import space_of
from esnac.search.evaluation import Evaluator
from esnac.search_spaces import SpaceSettings
from esnac.settings import build, to_plain
from esnac.training import TrainingSettings


@dataclass(frozen=True)
class Bundle:
    """Arrays that workers of one node share in its memory, and settings as plain values.

    `data`: as `data.arrays.pack` makes it. `targets`: the teacher's logits (N x classes) by epoch.
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
        cls, evaluator: Evaluator, space: SpaceSettings, targets: Mapping[int, Tensor]
    ) -> Bundle:
        """`targets`: those of all epochs that an evaluation takes."""
        # Without augmentation they are one tensor, which is to travel once.
        logits = {id(tensor): to_array(tensor) for tensor in targets.values()}
        return cls(
            graph=evaluator.space.graph.to_json(),
            space=to_plain(space),
            weights={name: to_array(tensor) for name, tensor in evaluator.weights.items()},
            data=pack(evaluator.data),
            targets={epoch: logits[id(tensor)] for epoch, tensor in targets.items()},
            targets_seed=evaluator.targets.seed,
            training=to_plain(evaluator.training),
            seed=evaluator.seed,
        )

    def evaluator(self, device: torch.device, folder: Callable[[int], Path]) -> Evaluator:
        """An evaluator on `device` that leaves students in `folder(number)`."""
        space = build(SpaceSettings, self.space)
        targets = {epoch: to_tensor(logits).to(device) for epoch, logits in self.targets.items()}
        return Evaluator(
            space=space_of(ArchGraph.from_json(self.graph), space),
            weights={name: to_tensor(array) for name, array in self.weights.items()},
            data=unpack(self.data).to(device),
            targets=GivenTargets(self.targets_seed, targets),
            training=build(TrainingSettings, self.training),
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
