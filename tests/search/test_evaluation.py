"""Trials of a tiny network, trained for an epoch or two on a few images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esnac.data import DataSet, from_tensors
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.cost import cost
from esnac.graphs.inherit import inherit
from esnac.graphs.moves import Moves
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.runtime import derive_seed
from esnac.search.evaluation import Evaluator
from esnac.search.sampler import sample
from esnac.search.trial import Trial
from esnac.search_spaces import SpaceSettings
from esnac.training import TrainingSettings, accuracy

SEED = 3
TRAINING = TrainingSettings(
    epochs=2,
    batch_size=32,
    optimizer="adam",
    learning_rate=3e-3,
    precision="float32",
    distillation="logit_mse",
    label_weight=0.0,
)

Make = Callable[..., Evaluator]


@pytest.fixture(scope="module")
def data(device: torch.device) -> DataSet:
    """Three classes, each a bright bar somewhere else on a noisy 8x8 image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    images = torch.randint(120, (150, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, 2 * label + 1, 2:6] += 100
    return from_tensors((images, labels), None).to(device)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            layer
            for made in ((1, 8), (8, 8), (8, 8))
            for layer in (nn.Conv2d(*made, 3, padding=1), nn.BatchNorm2d(made[1]), nn.ReLU())
        ]
        head = nn.Linear(8 * 64, 3)
        nn.init.normal_(head.weight, std=0.5)  # logits that are worth imitating
        return nn.Sequential(*layers, nn.Flatten(), head).eval()


@pytest.fixture
def make(teacher: nn.Module, data: DataSet, device: torch.device, tmp_path: Path) -> Make:
    """An evaluator, with other fields where they are named."""
    graph = trace(teacher, data.input_shape)
    weights = teacher_weights(graph, teacher.state_dict())
    network = StudentNetwork(graph, weights).to(device).eval()
    evaluator = Evaluator(
        space=Space(graph),
        weights=weights,
        data=data,
        targets=TeacherTargets(network, data, derive_seed(SEED, "augmentation"), device),
        training=TRAINING,
        selection="leading",
        seed=SEED,
        device=device,
        folder=lambda number: tmp_path / f"{number:04d}",
    )
    return lambda **changed: dataclasses.replace(evaluator, **changed)


def trials(space: Space, count: int = 3) -> list[Trial]:
    drawn = sample(space, SpaceSettings(shrink_limit=0.7), count, np.random.default_rng(1))
    moves = [space.moves(drawn, row) for row in range(count)]
    spent = [cost(space.apply(one)) for one in moves]
    return [
        Trial(number, 0, one, costs.params, costs.macs, 0.5)
        for number, (one, costs) in enumerate(zip(moves, spent, strict=True))
    ]


def test_the_accuracy_is_that_of_the_saved_student(
    make: Make, data: DataSet, device: torch.device
) -> None:
    evaluator = make()
    for trial in trials(evaluator.space):
        outcome = evaluator(trial)
        assert (outcome.state, outcome.reason) == ("DONE", None)
        assert outcome.seconds > 0
        student = students.load(evaluator.folder(trial.number))
        assert student.graph == evaluator.space.apply(trial.moves)
        assert sum(tensor.numel() for tensor in student.parameters()) == trial.params
        found = accuracy(student.to(device), data.validation, data)
        assert found == outcome.accuracy


def test_the_student_has_learnt_from_the_teachers_logits(
    make: Make, data: DataSet, device: torch.device
) -> None:
    """It starts from the teacher's weights and comes nearer to the teacher's logits."""
    evaluator = make(training=dataclasses.replace(TRAINING, epochs=8, select="last"))
    trial = trials(evaluator.space, 1)[0]
    evaluator(trial)
    graph = evaluator.space.apply(trial.moves)
    state = inherit(evaluator.space, graph, trial.moves, evaluator.weights)
    start = StudentNetwork(graph, state).to(device).eval()
    end = students.load(evaluator.folder(0)).to(device)
    wanted = evaluator.targets.epoch(0)  # nothing is augmented here
    images = data.train.images.float() / 255
    mean = torch.tensor(data.mean, device=device)[:, None, None]
    std = torch.tensor(data.std, device=device)[:, None, None]
    with torch.no_grad():
        before, after = (
            nn.functional.mse_loss(net((images - mean) / std), wanted) for net in (start, end)
        )
    assert after < 0.5 * before


def test_a_trial_is_a_function_of_seed_and_number(make: Make) -> None:
    evaluator = make()
    first, other, _ = trials(evaluator.space)
    alone = evaluator(first).accuracy
    weights = students.load(evaluator.folder(0)).state_dict()
    evaluator(other)
    torch.manual_seed(99)
    assert evaluator(first).accuracy == pytest.approx(alone, abs=0.04)  # a GPU may sum otherwise
    again = students.load(evaluator.folder(0)).state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-2, atol=1e-3)


def test_the_teachers_weights_are_not_touched(make: Make) -> None:
    evaluator = make()
    before = {name: tensor.clone() for name, tensor in evaluator.weights.items()}
    evaluator(trials(evaluator.space, 1)[0])
    for name, tensor in evaluator.weights.items():
        assert torch.equal(tensor, before[name])


def test_a_loss_that_explodes_is_a_failure_with_a_reason(make: Make) -> None:
    evaluator = make(training=dataclasses.replace(TRAINING, optimizer="sgd", learning_rate=1e30))
    outcome = evaluator(trials(evaluator.space, 1)[0])
    assert (outcome.state, outcome.accuracy) == ("FAILED", None)
    assert outcome.reason is not None
    assert "not finite" in outcome.reason
    assert "\n" not in outcome.reason
    assert not evaluator.folder(0).exists()


def test_moves_of_another_network_are_a_failure(make: Make) -> None:
    outcome = make()(Trial(0, 0, Moves((), (1,) * 99, ()), 1, 1, 0.5))
    assert outcome.state == "FAILED"
    assert "another network" in (outcome.reason or "")


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_student(
    make: Make, tmp_path: Path
) -> None:
    """It would fail every later trial as well, so it ends the search."""
    (tmp_path / "file").touch()
    evaluator = make(folder=lambda number: tmp_path / "file" / str(number))
    with pytest.raises(EsnacError, match="Cannot write a student"):
        evaluator(trials(evaluator.space, 1)[0])
