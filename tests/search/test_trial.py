from __future__ import annotations

import json

import pytest

from esnac.errors import EsnacError
from esnac.graphs.moves import Moves
from esnac.search.trial import Outcome, Trial

TRIAL = Trial(7, 2, Moves((1, 4), (8, 3), ((0, 5), (2, 6))), params=120, macs=4500, ratio=0.75)


def test_a_trial_is_the_same_after_json() -> None:
    plain = json.loads(json.dumps(TRIAL.to_plain()))
    assert plain["trial"] == 7
    assert plain["moves"] == {"removed": [1, 4], "kept": [8, 3], "skips": [[0, 5], [2, 6]]}
    assert Trial.from_plain(plain) == TRIAL
    assert hash(Trial.from_plain(plain)) == hash(TRIAL)


def test_a_journal_row_has_more_keys_than_a_trial() -> None:
    row = {"event": "trial", "time": "now", "state": "PROPOSED", **TRIAL.to_plain()}
    assert Trial.from_plain(row) == TRIAL


def test_damaged_moves_are_named() -> None:
    with pytest.raises(EsnacError, match="Not a description of moves"):
        Trial.from_plain({**TRIAL.to_plain(), "moves": {"removed": [1]}})


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome(accuracy=0.5), "DONE"),
        (Outcome(accuracy=0.0), "DONE"),  # a useless student is a result as well
        (Outcome(reason="no memory"), "FAILED"),
    ],
)
def test_state_of_an_outcome(outcome: Outcome, state: str) -> None:
    assert outcome.state == state


@pytest.mark.parametrize("fields", [{}, {"accuracy": 0.5, "reason": "both"}])
def test_an_outcome_is_a_result_or_a_failure(fields: dict) -> None:
    with pytest.raises(ValueError, match="either"):
        Outcome(**fields)
