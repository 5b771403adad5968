"""What a search is after: the published reward, accuracy within limits, or a Pareto front.

Whatever can be computed of a candidate is computed; only the accuracy is measured and modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from esnac.errors import SettingsError
from esnac.graphs.cost import candidate_bytes, candidate_costs
from esnac.graphs.space import Candidates, Space
from esnac.objective import log_ratio
from esnac.search.settings import KNOWN_MEASURES, ObjectiveSettings
from esnac.search_spaces import MOVES

#: Seconds that one image takes, of many candidates (N).
Latency = Callable[[Space, Candidates], np.ndarray]

#: Students among which the smallest possible one is looked for.
_TRIED = 64

_UNITS = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "latency": "ms"}


class Objective:
    """What is maximised among the candidates that are allowed.

    "f": c (2 - c) a with c the share of parameters saved and a = accuracy / teacher's accuracy
    (Cao et al. 2019). "accuracy": a. Both are weight x a with a known weight. "pareto": a and the
    shares saved of the teacher's cost by several measures, none of them before the others.
    Raises SettingsError when no student that the `moves` make lies within the limits, or when
    latency is asked for and `latency` is None.
    """

    def __init__(
        self,
        space: Space,
        teacher_accuracy: float,
        settings: ObjectiveSettings | None = None,
        latency: Latency | None = None,
        moves: Sequence[str] = MOVES,
    ) -> None:
        self.space = space
        self._moves = tuple(moves)
        self.teacher_accuracy = teacher_accuracy
        self.settings = settings or ObjectiveSettings()
        self._latency = latency
        names = self.settings.needed | {"params"}
        self._names = tuple(name for name in KNOWN_MEASURES if name in names)
        if "latency" in names and latency is None:
            raise SettingsError(
                "Latency is measured on a device: pass `latency`, or let `esnac search` do it."
            )
        teacher = self.measured(space.identity())
        self._teacher = {name: float(values[0]) for name, values in teacher.items()}
        if self.limited:
            self._check_reachable()

    @property
    def limited(self) -> bool:
        """Whether some candidates are not allowed."""
        return bool(self._limits())

    @property
    def known_measures(self) -> tuple[str, ...]:
        """What a pareto search weighs against the accuracy."""
        return tuple(name for name in self.settings.measures if name != "accuracy")

    @property
    def further_measures(self) -> tuple[str, ...]:
        """What this search needs beside parameters and MACs."""
        return tuple(name for name in self._names if name in ("bytes", "latency"))

    def measured(self, candidates: Candidates) -> dict[str, np.ndarray]:
        """The measures that this search needs, by name (N each); latency in milliseconds."""
        params, macs = candidate_costs(self.space, candidates)
        found = {"params": params, "macs": macs}
        if "bytes" in self._names:
            found["bytes"] = candidate_bytes(self.space, candidates)
        if "latency" in self._names:
            assert self._latency is not None
            found["latency"] = 1000 * self._latency(self.space, candidates)
        return found

    def allowed(self, candidates: Candidates) -> np.ndarray:
        """Which candidates lie within the limits (N, bool)."""
        measured = self.measured(candidates)
        good = np.ones(len(candidates), dtype=bool)
        for name, limit in self._limits():
            good &= measured[name] <= limit
        return good

    def size(self, candidates: Candidates) -> np.ndarray:
        """The share c of the teacher's parameters that each saves (N)."""
        params, _ = candidate_costs(self.space, candidates)
        share: np.ndarray = 1 - params / self._teacher["params"]
        return share

    def weight(self, candidates: Candidates) -> np.ndarray:
        """N, float64; meaningless for a pareto search."""
        if self.settings.kind == "accuracy":
            return np.ones(len(candidates))
        c = self.size(candidates)
        return c * (2 - c)

    def log_ratio(self, accuracy: np.ndarray) -> np.ndarray:
        """log(accuracy / teacher's accuracy), bounded below (N, float64)."""
        return log_ratio(accuracy, self.teacher_accuracy, self.space.graph.num_classes)

    def value(self, candidates: Candidates, accuracy: np.ndarray) -> np.ndarray:
        """One number per evaluated student, larger is better (N).

        For a pareto search minus the number of students that dominate it.
        """
        if self.settings.kind == "pareto":
            return -dominators(self.gains(candidates, accuracy)).astype(np.float64)
        value: np.ndarray = self.weight(candidates) * accuracy / self.teacher_accuracy
        return value

    def known(self, candidates: Candidates) -> np.ndarray:
        """The share of the teacher's cost that each saves, by every known measure (N x K)."""
        measured = self.measured(candidates)
        columns = [1 - measured[name] / self._teacher[name] for name in self.known_measures]
        return np.stack(columns, axis=1).astype(np.float64)

    def gains(self, candidates: Candidates, accuracy: np.ndarray) -> np.ndarray:
        """What a pareto search maximises (N x 1 + K): accuracy over the teacher's, and savings."""
        return np.column_stack([accuracy / self.teacher_accuracy, self.known(candidates)])

    def _limits(self) -> list[tuple[str, float]]:
        limits = ((name, getattr(self.settings, f"max_{name}")) for name in KNOWN_MEASURES)
        return [(name, limit) for name, limit in limits if limit is not None]

    def _check_reachable(self) -> None:
        smallest = self._smallest()
        for name, limit in self._limits():
            if smallest[name] > limit:
                raise SettingsError(
                    f"objective.max_{name} = {_readable(limit)} cannot be reached: the smallest "
                    f"possible student has {_readable(smallest[name])} {_UNITS[name]}."
                )

    def _smallest(self) -> Mapping[str, float]:
        """Each measure of the smallest students: least widths, with all layers, some or none.

        A removed layer joins channel groups, which may widen others, so any may be the smallest.
        """
        space = self.space
        rows = np.arange(_TRIED)[:, None] / (_TRIED - 1)
        removed = np.zeros((_TRIED, len(space.graph)), dtype=bool)
        if "remove" in self._moves:
            chance = np.random.default_rng(0).random((_TRIED, len(space.removable)))
            removed[:, space.removable] = chance < rows  # none in the first, all in the last
        share = np.full((_TRIED, len(space.groups.sizes)), 1.0 - ("shrink" in self._moves))
        skips = np.zeros((_TRIED, len(space.skips)), dtype=bool)
        small = space.resolve(removed, space.kept_at(share), skips)
        return {name: float(values.min()) for name, values in self.measured(small).items()}


def _readable(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def dominators(gains: np.ndarray) -> np.ndarray:
    """For each of n points (n x K, larger is better) how many others dominate it (n)."""
    better = (gains[:, None] >= gains[None]).all(2) & (gains[:, None] > gains[None]).any(2)
    counts: np.ndarray = better.sum(axis=0)
    return counts


def hypervolume(gains: np.ndarray) -> float:
    """The volume that n points (n x K) dominate, above 0 in every measure."""
    import torch
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    front = gains[(dominators(gains) == 0) & (gains > 0).all(axis=1)]
    if not len(front):
        return 0.0
    reference = torch.zeros(gains.shape[1], dtype=torch.float64)
    return float(Hypervolume(reference).compute(torch.from_numpy(np.unique(front, axis=0))))


def spread_of_front(gains: np.ndarray, k: int) -> list[int]:
    """k rows that together dominate most, chosen one after the other; all from the front first."""
    chosen: list[int] = []
    left = list(range(len(gains)))
    counts = dominators(gains)
    while left and len(chosen) < k:
        front = [row for row in left if counts[row] == 0] or left
        volumes = [hypervolume(gains[[*chosen, row]]) for row in front]
        best = front[int(np.argmax(volumes))]
        chosen.append(best)
        left.remove(best)
    return chosen
