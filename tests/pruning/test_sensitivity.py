from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError, SettingsError
from esnac.graphs.masks import effective_weights
from esnac.pruning.gradual import Gradual, Pruner
from esnac.pruning.layers import prunable
from esnac.pruning.schedule import load
from esnac.pruning.sensitivity import LEVELS, Sensitivity, analyse, plot
from tests.pruning.conftest import Digits, plain, sparsity_of

RESULT = Sensitivity(
    0.98,
    (0.0, 0.3, 0.6, 0.9),
    {"a.weight": (0.98, 0.98, 0.97, 0.3), "b.weight": (0.98, 0.9, 0.98, 0.98)},
)


def test_one_weight_is_sparse_at_a_time_and_the_network_stays() -> None:
    network = plain()
    before = {name: w.clone() for name, w in effective_weights(network).items()}
    seen: list[list[float]] = []

    def evaluate(pruned: nn.Module) -> float:
        seen.append([round(sparsity_of(w), 2) for w in prunable(pruned).values()])
        return 0.5

    result = analyse(network, evaluate, levels=(0.0, 0.5), exclude=("14",))
    assert list(result.accuracy) == ["0.weight", "3.weight", "6.weight", "9.weight"]
    assert seen[:3] == [[0] * 5, [0] * 5, [0.5, 0, 0, 0, 0]]
    assert seen[-1] == [0, 0, 0, 0.5, 0]
    assert all(torch.equal(w, before[n]) for n, w in effective_weights(network).items())
    assert [name for name, _ in network.named_parameters()] == list(before)


def test_the_highest_level_before_the_first_loss_is_proposed() -> None:
    assert RESULT.propose(0.015) == {"a.weight": 0.6}
    assert RESULT.propose(0.1) == {"a.weight": 0.6, "b.weight": 0.9}
    assert RESULT.propose(0.0) == {"a.weight": 0.3}


def test_csv_and_table() -> None:
    rows = list(csv.reader(RESULT.to_csv().splitlines()))
    assert rows[0] == ["weight", "0", "0.3", "0.6", "0.9"]
    assert [float(value) for value in rows[1][1:]] == list(RESULT.accuracy["a.weight"])
    assert RESULT.table()[1] == ("a.weight", "98.00", "98.00", "97.00", "30.00", "0.6")


def test_the_proposal_is_a_schedule(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(RESULT.to_schedule(12, 0.1))
    schedule = load(tmp_path / "plan.toml")
    assert [(p.layers, p.sparsity) for p in schedule.pruners] == [
        (("a.weight",), 0.6), (("b.weight",), 0.9),
    ]  # fmt: skip
    assert (schedule.epochs, schedule.settled) == (12, 7)
    with pytest.raises(SettingsError, match="epochs must be at least 3"):
        RESULT.to_schedule(2)
    nothing = Sensitivity(0.98, (0.5,), {"a.weight": (0.1,)})
    with pytest.raises(EsnacError, match="allow a larger drop"):
        nothing.to_schedule(12)


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(RESULT, tmp_path / "curves.svg")
    assert "a.weight" in (tmp_path / "curves.svg").read_text()
    with pytest.raises(EsnacError, match="no such kind of picture"):
        plot(RESULT, tmp_path / "curves.doc")


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.0, 1.0), (-0.1,)])
def test_levels_out_of_range(levels: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match="rising sparsities"):
        analyse(plain(), lambda _: 0.0, levels)


@pytest.mark.slow
def test_proposed_levels_of_digits_cost_little(digits: Digits) -> None:
    network = plain()
    dense = digits.fit(network, 5, 0.05)
    result = analyse(network, digits.accuracy, LEVELS)
    assert result.dense == dense
    assert all(row[0] == dense for row in result.accuracy.values())
    levels = result.propose(0.01)
    assert max(levels.values()) >= 0.3
    pruners = [Pruner("magnitude", layers=(n,), sparsity=s) for n, s in levels.items()]
    Gradual(network, pruners).apply()
    assert digits.accuracy(network) > dense - 0.1
