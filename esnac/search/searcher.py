"""The search as a conversation: `ask` for students, `tell` how they did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.cost import candidate_costs, cost
from esnac.graphs.inherit import inherit
from esnac.graphs.moves import Moves
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Candidates
from esnac.graphs.trace import trace
from esnac.objective import compression, reward
from esnac.search.earlier import Earlier, space_of
from esnac.search.engines import make_engine
from esnac.search.objectives import (
    Latency,
    Objective,
    dominators,
    hypervolume,
    spread_of_front,
)
from esnac.search.proposer import History, SpaceExhaustedError
from esnac.search.settings import ObjectiveSettings, SearchSettings
from esnac.search.trial import Outcome, Trial
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.settings import EnsembleSettings, SurrogateSettings


class Searcher:
    """Proposes students of one teacher and learns from their rewards.

        searcher = Searcher(module, input_size=(3, 32, 32), teacher_accuracy=0.93)
        for trial in searcher.ask(8):
            student = searcher.build(trial)        # a module with the teacher's weights
            searcher.tell(trial, accuracy=...)     # a fraction in [0, 1], teacher and student alike
            # or, when it cannot be evaluated:       searcher.tell(trial, failure="why")

    Trials are numbered from 0 in order of proposal; every architecture is proposed once. Equal
    seeds and equal answers give equal proposals.
    """

    def __init__(
        self,
        teacher: nn.Module | ArchGraph,
        input_size: Sequence[int] | None = None,
        *,
        teacher_accuracy: float = 1.0,
        settings: SearchSettings | None = None,
        space: SpaceSettings | None = None,
        surrogate: SurrogateSettings | None = None,
        model: EnsembleSettings | None = None,
        objective: ObjectiveSettings | None = None,
        latency: Latency | None = None,
        earlier: Earlier | None = None,
        seed: int = 127,
    ) -> None:
        self._weights: dict[str, Tensor] | None = None
        if isinstance(teacher, nn.Module):
            if input_size is None:
                raise EsnacError(
                    "A module needs input_size=(channels, height, width) to be traced."
                )
            state = {key: value.detach().cpu() for key, value in teacher.state_dict().items()}
            teacher = trace(teacher, tuple(input_size))
            self._weights = teacher_weights(teacher, state, ignore_unused=True)
        if not 0 < teacher_accuracy <= 1:
            raise EsnacError(f"teacher_accuracy is a fraction in (0, 1]; got {teacher_accuracy}.")
        self.graph = teacher
        self.teacher_accuracy = teacher_accuracy
        self.settings = settings or SearchSettings()
        self.space_settings = space or SpaceSettings()
        self.space = space_of(self.graph, self.space_settings)
        self.teacher_cost = cost(self.graph)
        self.trials: list[Trial] = []
        self.outcomes: dict[int, Outcome] = {}
        #: The first step that may know the result of each trial.
        self._since: dict[int, int] = {}
        #: Steps of a pareto search whose front is on record.
        self.fronts: set[int] = set()
        self.objective = Objective(
            self.space, teacher_accuracy, objective, latency, self.space_settings.moves
        )
        self._engine = make_engine(
            self.space,
            self.objective,
            self.settings,
            self.space_settings,
            surrogate or SurrogateSettings(),
            model or EnsembleSettings(),
            earlier,
            seed,
        )
        self._seen: set[bytes] = set(self.space.identity().keys())

    @property
    def steps(self) -> int:
        """Number of steps (calls of `ask`) so far."""
        return 1 + max((trial.step for trial in self.trials), default=-1)

    def ask(self, n: int = 1, step: int | None = None) -> list[Trial]:
        """n new trials; fewer (or none) when the space has no architecture left.

        They count as step `step` (default: a new one) and rest on the results of earlier steps.
        """
        step = self.steps if step is None else step
        try:
            proposal = self._engine.propose(n, self._history(step))
        except SpaceExhaustedError:
            return []
        candidates = proposal.candidates
        params, macs = candidate_costs(self.space, candidates)
        keys = candidates.keys()
        asked = []
        for row, expected in enumerate(proposal.expected):
            trial = Trial(
                number=len(self.trials),
                step=step,
                moves=self.space.moves(candidates, row),
                params=int(params[row]),
                macs=int(macs[row]),
                ratio=compression(int(params[row]), self.teacher_cost.params),
                expected=expected,
            )
            self._add(trial, keys[row])
            asked.append(trial)
        return asked

    def tell(
        self,
        trial: Trial,
        outcome: Outcome | None = None,
        *,
        accuracy: float | None = None,
        failure: str | None = None,
    ) -> float | None:
        """Takes the result of a trial, once; returns its f, or None for a failure.

        Pass the validation accuracy, the reason of a failure, or an `Outcome` that holds either.
        """
        if sum(given is not None for given in (outcome, accuracy, failure)) != 1:
            raise EsnacError("tell takes one of: an accuracy, a failure, an outcome.")
        if trial.number >= len(self.trials) or self.trials[trial.number] != trial:
            raise EsnacError(f"Trial {trial.number} is not one of this search.")
        if trial.number in self.outcomes:
            raise EsnacError(f"Trial {trial.number} has its result already.")
        outcome = outcome or Outcome(accuracy=accuracy, reason=failure)
        if outcome.accuracy is not None and not 0 <= outcome.accuracy <= 1:
            raise EsnacError(f"An accuracy is a fraction in [0, 1]; got {outcome.accuracy}.")
        self.outcomes[trial.number] = outcome
        self._since[trial.number] = self.steps
        return self.f(trial)

    def restore(self, trial: Trial) -> None:
        """Takes back a trial of an earlier session, in the order of its number."""
        if trial.number != len(self.trials):
            raise EsnacError(f"Trial {trial.number} cannot follow {len(self.trials)} trials.")
        self._add(trial, self.space.candidates([trial.moves]).keys()[0])

    def pending(self) -> list[Trial]:
        """Trials asked for and not told about."""
        return [trial for trial in self.trials if trial.number not in self.outcomes]

    def f(self, trial: Trial) -> float | None:
        """The reward of a trial, None while there is none."""
        outcome = self.outcomes.get(trial.number)
        if outcome is None or outcome.accuracy is None:
            return None
        return reward(trial.ratio, outcome.accuracy, self.teacher_accuracy)

    def best(self, k: int = 1) -> list[Trial]:
        """The k best trials, best first; of equal ones the earlier.

        By what the search maximises; in a pareto search those of the front that together dominate
        most. Trials that were stopped early left no student and do not count, nor do those outside
        a limit: latency may be another where the search goes on.
        """
        done = self._whole()
        if done and self.objective.limited:
            inside = self.objective.allowed(self.space.candidates(trial.moves for trial in done))
            done = [trial for trial, good in zip(done, inside, strict=True) if good]
        if not done:
            return []
        candidates, accuracy = self._results(done)
        if self.objective.settings.kind == "pareto":
            gains = self.objective.gains(candidates, accuracy)
            return [done[row] for row in spread_of_front(gains, k)]
        value = self.objective.value(candidates, accuracy)
        return [done[row] for row in np.argsort(-value, kind="stable")[:k]]

    def front(self) -> tuple[list[Trial], float]:
        """Trials that no other dominates, and their hypervolume (pareto searches)."""
        done = self._whole()
        if not done:
            return [], 0.0
        gains = self.objective.gains(*self._results(done))
        rows = np.flatnonzero(dominators(gains) == 0)
        return [done[row] for row in rows], hypervolume(gains)

    def weight(self, trial: Trial) -> float:
        """What an accuracy of this trial is multiplied with to compare it with others'.

        In a pareto search as for f.
        """
        return float(self.objective.weight(self.space.candidates([trial.moves]))[0])

    def measures(self, trial: Trial) -> dict[str, float]:
        """What the search knows of a trial beside its parameters and MACs: bytes, latency in ms."""
        if not self.objective.further_measures:
            return {}
        found = self.objective.measured(self.space.candidates([trial.moves]))
        return {name: float(found[name][0]) for name in self.objective.further_measures}

    def student(self, trial: Trial | Moves) -> ArchGraph:
        """The architecture of a trial."""
        return self.space.apply(trial.moves if isinstance(trial, Trial) else trial)

    def build(self, trial: Trial | Moves) -> StudentNetwork:
        """The student as a module, with inherited weights if the teacher was given as a module."""
        moves = trial.moves if isinstance(trial, Trial) else trial
        graph = self.space.apply(moves)
        if self._weights is None:
            return StudentNetwork(graph)
        selection = self.space_settings.inherit
        return StudentNetwork(graph, inherit(self.space, graph, moves, self._weights, selection))

    def _whole(self) -> list[Trial]:
        """Trials whose evaluation went to its end."""
        done = [trial for trial in self.trials if self.f(trial) is not None]
        return [t for t in done if self.outcomes[t.number].stopped_after is None]

    def _known(self, step: int) -> list[Trial]:
        """Trials whose result a step knows."""
        return [t for t in self.trials if self._since.get(t.number, step + 1) <= step]

    def _accuracies(self, trials: Sequence[Trial], step: int) -> np.ndarray:
        """As measured; of trainings that were stopped early as they would have gone on.

        From the mean log accuracies of whole trainings, as far as `step` knows them, at that epoch
        and at their end. Of its distance to the first a student keeps the share of the epochs that
        it was trained: on digits, from 4, 8 and 16 of 20 epochs on, measured slopes are 0.12, 0.40
        and 0.89.
        """
        outcomes = [self.outcomes[trial.number] for trial in trials]
        found = np.array([outcome.accuracy for outcome in outcomes], dtype=np.float64)
        ends = {o.stopped_after for o in outcomes if o.stopped_after is not None}
        if not ends:
            return found
        known = [self.outcomes[trial.number] for trial in self._known(step)]
        whole = [o for o in known if o.stopped_after is None and o.accuracy and o.curve]
        for epochs in ends:
            pairs = [(o.accuracy, o.curve[epochs - 1]) for o in whole if len(o.curve) >= epochs]
            logs = [(math.log(end), math.log(then)) for end, then in pairs if end and then]
            if not logs:
                continue
            end, then = np.mean(logs, axis=0)
            share = epochs / max(len(o.curve) for o in whole)
            for row, outcome in enumerate(outcomes):
                if outcome.stopped_after == epochs and outcome.accuracy:
                    guess = math.exp(end + share * (math.log(outcome.accuracy) - then))
                    found[row] = min(max(guess, outcome.accuracy), 1.0)
        return found

    def _add(self, trial: Trial, key: bytes) -> None:
        self.trials.append(trial)
        self._seen.add(key)

    def _history(self, step: int) -> History:
        known = self._known(step)
        told = [t for t in known if self.f(t) is not None]
        pending = [t for t in self.trials if self._since.get(t.number, step + 1) > step]
        observed, accuracy = self._results(told, step)
        return History(
            step=step,
            number=len(self.trials),
            observed=observed,
            steps=np.array([trial.step for trial in told], dtype=np.int64),
            since=np.array([self._since[trial.number] for trial in told], dtype=np.int64),
            accuracy=accuracy,
            accuracy_at=lambda earlier: self._accuracies(told, earlier),
            value=self.objective.value(observed, accuracy),
            expected=tuple(trial.expected for trial in told),
            pending=self.space.candidates(trial.moves for trial in pending),
            seen=self._seen,
        )

    def _results(
        self, trials: Sequence[Trial], step: int | None = None
    ) -> tuple[Candidates, np.ndarray]:
        """As `step` knows them (default: now)."""
        candidates = self.space.candidates(trial.moves for trial in trials)
        return candidates, self._accuracies(trials, self.steps if step is None else step)
