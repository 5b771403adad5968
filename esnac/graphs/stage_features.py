"""A student in a few numbers: how wide, deep and whole each stage is. A baseline for embeddings."""

from __future__ import annotations

import numpy as np

from esnac.graphs.cost import candidate_costs, cost
from esnac.graphs.space import Candidates, Space


class StageFeatures:
    """4 numbers per stage (layers of one spatial size) and 3 of the whole student.

    Per stage: mean log2 share of the channels kept by its convolutions and linear layers, and the
    shares of these, of norms and of other removable layers that are still there. Then log2 shares
    of parameters and of MACs, and log2(1 + number of added skips).
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        layers = space.graph.layers
        _, makes = space.widths(space.identity().kept)
        self._full = makes[0]
        removable = np.isin(np.arange(len(layers)), space.removable)
        areas = np.array([int(np.prod(layer.out_shape[1:])) for layer in layers])
        units = np.array([layer.kind in ("conv", "linear") for layer in layers])
        norms = np.array([layer.kind in ("batch_norm", "group_norm") for layer in layers])
        self._stages = []
        for area in np.unique(areas)[::-1]:
            here = areas == area
            kinds = (units & here, norms & here, ~units & ~norms & removable & here)
            self._stages.append(tuple(np.flatnonzero(kind) for kind in kinds))
        self._teacher = cost(space.graph)

    def encode(self, candidates: Candidates) -> np.ndarray:
        """N x (4 stages + 3), float64."""
        _, makes = self._space.widths(candidates.kept)
        share = np.log2(makes / self._full)
        columns = []
        for units, norms, others in self._stages:
            if len(units):
                columns.append(share[:, units].mean(axis=1))
            for members in (units, norms, others):
                if len(members):
                    columns.append(1 - candidates.removed[:, members].mean(axis=1))
        params, macs = candidate_costs(self._space, candidates)
        columns.append(np.log2(params / self._teacher.params))
        columns.append(np.log2(np.maximum(macs, 1) / self._teacher.macs))
        columns.append(np.log2(1 + candidates.skips.sum(axis=1)))
        return np.stack(columns, axis=1)
