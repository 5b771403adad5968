"""What a search is after: the published reward, or accuracy within limits.

Whatever can be computed of a candidate is computed; only the accuracy is measured and modelled.
"""

from __future__ import annotations

import numpy as np

from esnac.graphs.cost import candidate_costs, cost
from esnac.graphs.space import Candidates, Space
from esnac.objective import compression
from esnac.search.settings import ObjectiveSettings


class Objective:
    """value = weight x accuracy / teacher's accuracy, among the candidates that are allowed.

    "f": the weight is c (2 - c) with c the share of parameters saved (Cao et al. 2019).
    "accuracy": the weight is 1.
    """

    def __init__(
        self, space: Space, teacher_accuracy: float, settings: ObjectiveSettings | None = None
    ) -> None:
        self.space = space
        self.teacher_accuracy = teacher_accuracy
        self.settings = settings or ObjectiveSettings()
        self._teacher = cost(space.graph)
        # Below half of what guessing gives all accuracies mean the same.
        self._floor = 0.5 / space.graph.num_classes

    def weight(self, candidates: Candidates) -> np.ndarray:
        """N, float64."""
        if self.settings.kind == "accuracy":
            return np.ones(len(candidates))
        c = self.size(candidates)
        return c * (2 - c)

    def size(self, candidates: Candidates) -> np.ndarray:
        """The share c of the teacher's parameters that each saves (N)."""
        params, _ = candidate_costs(self.space, candidates)
        return 1 - params / self._teacher.params

    def log_ratio(self, accuracy: np.ndarray) -> np.ndarray:
        """log(accuracy / teacher's accuracy), bounded below (N, float64)."""
        return np.log(np.maximum(accuracy, self._floor) / self.teacher_accuracy)

    def value(self, params: int, accuracy: float) -> float:
        """What is maximised, of one student."""
        c = compression(params, self._teacher.params)
        weight = 1.0 if self.settings.kind == "accuracy" else c * (2 - c)
        return weight * accuracy / self.teacher_accuracy

    @property
    def limited(self) -> bool:
        return self.settings.max_params is not None or self.settings.max_macs is not None

    def allowed(self, candidates: Candidates) -> np.ndarray:
        """Which candidates lie within the limits (N, bool)."""
        params, macs = candidate_costs(self.space, candidates)
        good = np.ones(len(candidates), dtype=bool)
        if self.settings.max_params is not None:
            good &= params <= self.settings.max_params
        if self.settings.max_macs is not None:
            good &= macs <= self.settings.max_macs
        return good

    def check_reachable(self) -> None:
        """Raises EsnacError when no student of the space can lie within the limits."""
