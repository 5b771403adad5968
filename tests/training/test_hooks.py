from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from esnac.data import DataSet, DataSettings, from_tensors
from esnac.distillation.losses import make_loss
from esnac.errors import TrainingError
from esnac.training import Hooks, TrainingResult, TrainingSettings, fit

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(epochs=4, batch_size=16, learning_rate=0.05, precision="float32")


@pytest.fixture(scope="module")
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    images = torch.randint(120, (120, 1, 4, 4), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, label, :] += 100
    return from_tensors((images, labels), None, DataSettings(padding=0, flip=False))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def train(
    model: nn.Module, data: DataSet, hooks: Hooks, checkpoint: Path | None = None
) -> TrainingResult:
    return fit(
        model, data, SETTINGS, loss=make_loss(SETTINGS), seed=1, augmentation_seed=2, device=CPU,
        checkpoint=checkpoint, hooks=hooks,
    )  # fmt: skip


def test_each_epoch_is_announced_and_its_rate_scaled(data: DataSet) -> None:
    epochs: list[int] = []
    hooks = Hooks(before_epoch=epochs.append, rate=lambda epoch: 0.5**epoch)
    result = train(network(), data, hooks)
    assert epochs == [0, 1, 2, 3]
    rates = [record.learning_rate for record in result.history]
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.00625])


def test_a_penalty_is_minimised_and_not_reported(data: DataSet) -> None:
    free, held = network(), network()
    plain = train(free, data, Hooks())
    norm = held[1]

    def penalty(epoch: int) -> torch.Tensor:
        return 100 + 0.1 * norm.weight.abs().sum()  # type: ignore[operator, union-attr]

    result = train(held, data, Hooks(penalty=penalty))
    assert norm.weight.abs().sum() < free[1].weight.abs().sum()  # type: ignore[operator, union-attr]
    assert result.history[0].loss < plain.history[0].loss + 1


def test_no_weights_are_kept_before_all_is_settled(data: DataSet) -> None:
    result = train(network(), data, Hooks(settled=3))
    assert result.epoch == 3
    with pytest.raises(TrainingError, match="only epochs 0 to 3"):
        train(network(), data, Hooks(settled=4))


def test_a_checkpoint_of_other_hooks_is_not_continued(data: DataSet, tmp_path: Path) -> None:
    epochs: list[int] = []
    train(network(), data, Hooks(about="one"), tmp_path)
    train(network(), data, Hooks(epochs.append, about="one"), tmp_path)
    assert epochs == []
    train(network(), data, Hooks(epochs.append, about="two"), tmp_path)
    assert epochs == [0, 1, 2, 3]
