"""Trials of a tiny network, trained for an epoch or two on a few images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from esnac.data import DataSet
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.inherit import inherit
from esnac.graphs.moves import Moves
from esnac.graphs.network import StudentNetwork
from esnac.search.evaluation import Evaluation, Evaluator, SeededTargets
from esnac.search.trial import Trial
from esnac.training import accuracy

Make = Callable[..., Evaluator]
Trials = Callable[..., list[Trial]]


@dataclass(frozen=True)
class Forgetful:
    """Targets that one epoch has no memory for."""

    known: SeededTargets
    lost: int

    @property
    def seed(self) -> int:
        return self.known.seed

    def epoch(self, epoch: int) -> torch.Tensor:
        if epoch == self.lost:
            raise MemoryError(f"targets of epoch {epoch}\nand more")
        return self.known.epoch(epoch)


def test_the_accuracy_is_that_of_the_saved_student(
    make_evaluator: Make, make_trials: Trials, bars: DataSet, device: torch.device
) -> None:
    evaluator = make_evaluator()
    for trial in make_trials(evaluator.space):
        outcome = evaluator(trial)
        assert (outcome.state, outcome.reason) == ("DONE", None)
        assert outcome.seconds > 0
        student = students.load(evaluator.folder(trial.number))
        assert student.graph == evaluator.space.apply(trial.moves)
        assert sum(tensor.numel() for tensor in student.parameters()) == trial.params
        found = accuracy(student.to(device), bars.validation, bars)
        assert found == outcome.accuracy


def test_the_student_has_learnt_from_the_teachers_logits(
    make_evaluator: Make, make_trials: Trials, bars: DataSet, device: torch.device
) -> None:
    """It starts from the teacher's weights and comes nearer to the teacher's logits."""
    evaluator = make_evaluator(training={"epochs": 8, "select": "last"})
    trial = make_trials(evaluator.space, 1)[0]
    evaluator(trial)
    graph = evaluator.space.apply(trial.moves)
    state = inherit(evaluator.space, graph, trial.moves, evaluator.weights)
    start = StudentNetwork(graph, state).to(device).eval()
    end = students.load(evaluator.folder(0)).to(device)
    wanted = evaluator.targets.epoch(0)  # nothing is augmented here
    images = bars.train.images.float() / 255
    mean = torch.tensor(bars.mean, device=device)[:, None, None]
    std = torch.tensor(bars.std, device=device)[:, None, None]
    with torch.no_grad():
        before, after = (
            nn.functional.mse_loss(net((images - mean) / std), wanted) for net in (start, end)
        )
    assert after < 0.5 * before


def test_a_trial_is_a_function_of_seed_and_number(
    make_evaluator: Make, make_trials: Trials
) -> None:
    evaluator = make_evaluator()
    first, other, _ = make_trials(evaluator.space)
    alone = evaluator(first).accuracy
    weights = students.load(evaluator.folder(0)).state_dict()
    evaluator(other)
    torch.manual_seed(99)
    assert evaluator(first).accuracy == pytest.approx(alone, abs=0.04)  # a GPU may sum otherwise
    again = students.load(evaluator.folder(0)).state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-2, atol=1e-3)


def test_the_teachers_weights_are_not_touched(make_evaluator: Make, make_trials: Trials) -> None:
    evaluator = make_evaluator()
    before = {name: tensor.clone() for name, tensor in evaluator.weights.items()}
    evaluator(make_trials(evaluator.space, 1)[0])
    for name, tensor in evaluator.weights.items():
        assert torch.equal(tensor, before[name])


def test_a_loss_that_explodes_is_a_failure_with_a_reason(
    make_evaluator: Make, make_trials: Trials
) -> None:
    evaluator = make_evaluator(training={"optimizer": "sgd", "learning_rate": 1e30})
    outcome = evaluator(make_trials(evaluator.space, 1)[0])
    assert (outcome.state, outcome.accuracy) == ("FAILED", None)
    assert outcome.reason is not None
    assert "not finite" in outcome.reason
    assert "\n" not in outcome.reason
    assert not evaluator.folder(0).exists()


def test_moves_of_another_network_are_a_failure(make_evaluator: Make) -> None:
    outcome = make_evaluator()(Trial(0, 0, Moves((), (1,) * 99, ()), 1, 1, 0.5))
    assert outcome.state == "FAILED"
    assert "another network" in (outcome.reason or "")


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_student(
    make_evaluator: Make, make_trials: Trials, tmp_path: Path
) -> None:
    """It would fail every later trial as well, so it ends the search."""
    (tmp_path / "file").touch()
    evaluator = make_evaluator(folder=lambda number: tmp_path / "file" / str(number))
    with pytest.raises(EsnacError, match="Cannot write a student"):
        evaluator(make_trials(evaluator.space, 1)[0])


def test_epoch_by_epoch_it_ends_where_it_does_at_once(
    make_evaluator: Make, make_trials: Trials, bars: DataSet
) -> None:
    evaluator = make_evaluator(training={"epochs": 4})
    trial = make_trials(evaluator.space, 1)[0]
    whole = evaluator(trial)
    weights = students.load(evaluator.folder(0)).state_dict()
    shutil.rmtree(evaluator.folder(0))
    evaluation = Evaluation(evaluator, trial)
    seen, seconds = [], [0.0]
    for epoch in range(1, 4):
        assert evaluation.advance() is None
        assert evaluation.epochs == epoch
        seen.append(evaluation.accuracy)
        seconds.append(evaluation.seconds)
    assert not evaluator.folder(0).exists()
    outcome = evaluation.advance()
    assert outcome is not None
    seen.append(evaluation.accuracy)
    assert seconds == sorted(set(seconds))
    assert outcome.seconds == evaluation.seconds > seconds[-1]
    assert (evaluation.epochs, outcome.stopped_after) == (4, None)
    assert outcome.accuracy == whole.accuracy == max(seen), "the best epoch is kept"
    for name, tensor in students.load(evaluator.folder(0)).state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_its_accuracy_is_that_of_a_training_of_so_many_epochs(
    make_evaluator: Make, make_trials: Trials
) -> None:
    """The learning rate is constant, so a longer training begins like a shorter one."""
    trial = make_trials(make_evaluator().space, 1)[0]
    shorter = [
        make_evaluator(training={"epochs": epochs, "select": "last"})(trial).accuracy
        for epochs in (1, 2, 3)
    ]
    evaluation = Evaluation(make_evaluator(training={"epochs": 9}), trial)
    for accuracy_ in shorter:
        evaluation.advance()
        assert evaluation.accuracy == accuracy_


def test_a_later_epoch_may_fail(make_evaluator: Make, make_trials: Trials) -> None:
    evaluator = make_evaluator(targets=Forgetful(make_evaluator().targets, 1))
    evaluation = Evaluation(evaluator, make_trials(evaluator.space, 1)[0])
    assert evaluation.advance() is None
    known = evaluation.accuracy
    outcome = evaluation.advance()
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("FAILED", "MemoryError: targets of epoch 1")
    assert (evaluation.epochs, evaluation.accuracy) == (1, known)
    assert outcome.seconds == evaluation.seconds > 0
    assert not evaluator.folder(0).exists()
