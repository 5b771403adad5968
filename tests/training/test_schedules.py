from __future__ import annotations

import pytest
import torch

from esnac.training import TrainingSettings
from esnac.training.schedules import learning_rate


def rates(settings: TrainingSettings, steps_per_epoch: int) -> list[float]:
    total = settings.epochs * steps_per_epoch
    return [learning_rate(settings, step, steps_per_epoch) for step in range(total)]


def oracle(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return found


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_constant() -> None:
    assert rates(TrainingSettings(epochs=2, learning_rate=0.3), 3) == [0.3] * 6


def test_step_changes_at_the_start_of_its_epochs() -> None:
    settings = TrainingSettings(epochs=5, learning_rate=1.0, schedule="step", milestones=(2, 4))
    assert rates(settings, 2) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_is_torchs() -> None:
    settings = TrainingSettings(epochs=4, learning_rate=0.4, schedule="cosine")
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(0.4), T_max=20)
    assert rates(settings, 5) == pytest.approx(oracle(reference, 20))


@pytest.mark.parametrize(("epochs", "steps"), [(4, 5), (3, 1), (7, 13)])
def test_one_cycle_is_torchs(epochs: int, steps: int) -> None:
    settings = TrainingSettings(epochs=epochs, learning_rate=0.4, schedule="one_cycle")
    total = epochs * steps
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer(0.4), max_lr=0.4, total_steps=total, cycle_momentum=False
    )
    expected = oracle(reference, total - 1)  # torch refuses one step more
    expected.append(0.4 / 25 / 1e4)
    assert rates(settings, steps) == pytest.approx(expected)


def test_one_cycle_of_one_step() -> None:
    settings = TrainingSettings(epochs=1, learning_rate=0.4, schedule="one_cycle")
    assert 0 < learning_rate(settings, 0, 1) <= 0.4
