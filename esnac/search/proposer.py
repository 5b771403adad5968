"""What every engine of the search is: a proposer of students that have not been tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from esnac.errors import EsnacError
from esnac.graphs.space import Candidates, joined
from esnac.search.trial import Expectation

#: Fresh pools drawn, when every candidate of a pool is known already, before giving up.
POOLS = 20


class SpaceExhaustedError(EsnacError):
    """No architecture is left that has not been proposed."""

    def __init__(self) -> None:
        super().__init__("Every architecture that the search space draws has been proposed.")


@dataclass(frozen=True)
class History:
    """What a proposal may rest on.

    `observed` are the n students whose result is known, in the order of their numbers, with the
    `steps` that proposed them, the first step that knew their result (`since`), their `accuracy`
    (validation, fraction; `accuracy_at` an earlier step: as far as it knew), `value` (what the
    search maximises, such as f) and what was `expected` of them. `pending` are those whose result
    step `step` does not know. `seen` has the keys of all architectures that must not be proposed;
    `number` is that of the next trial.
    """

    step: int
    number: int
    observed: Candidates
    steps: np.ndarray
    since: np.ndarray
    accuracy: np.ndarray
    accuracy_at: Callable[[int], np.ndarray]
    value: np.ndarray
    expected: tuple[Expectation | None, ...]
    pending: Candidates
    seen: set[bytes]


@dataclass(frozen=True)
class Proposal:
    """Candidates (n) and, from engines that model the accuracy, what they expect of each."""

    candidates: Candidates
    expected: tuple[Expectation | None, ...]


class Proposer(Protocol):
    """An engine. Equal histories and seeds give equal proposals, whatever was asked before.

    An engine may keep what it computed for earlier histories of the same search, as a cache.
    """

    def propose(self, n: int, history: History) -> Proposal:
        """Up to `n` new candidates, fewer where the space has no more.

        Asked for n at once or in parts, with the earlier parts pending, the answer is the same.
        """
        ...


def unexpected(candidates: Candidates) -> Proposal:
    """A proposal of an engine that predicts nothing."""
    return Proposal(candidates, (None,) * len(candidates))


def one_by_one(
    n: int,
    history: History,
    propose: Callable[[int, set[bytes], list[Candidates]], Candidates | None],
) -> Proposal:
    """Up to n candidates, one `propose(number, seen, chosen)` for each trial number.

    `chosen` are those before it and `seen` knows them, too; None says that there are no more.
    Raises SpaceExhaustedError when there is none at all.
    """
    seen = set(history.seen)
    chosen: list[Candidates] = []
    for number in range(history.number, history.number + n):
        candidate = propose(number, seen, chosen)
        if candidate is None:
            break
        seen.update(candidate.keys())
        chosen.append(candidate)
    if not chosen:
        raise SpaceExhaustedError
    return unexpected(joined(chosen))


def unseen(candidates: Candidates, seen: set[bytes]) -> Candidates:
    """Those that are not in `seen`, each once, in order."""
    keys: dict[bytes, int] = {}
    for row, key in enumerate(candidates.keys()):
        if key not in seen:
            keys.setdefault(key, row)
    return candidates.select(np.array(list(keys.values()), dtype=np.int64))
