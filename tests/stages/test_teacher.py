from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import esnac
from esnac import teachers
from esnac.data import DataSet
from esnac.errors import EsnacError
from esnac.settings import to_plain
from esnac.stages.teacher import TeacherJob, train_teacher
from esnac.training import EpochRecord, TrainingSettings, accuracy

TRAINING = TrainingSettings(
    epochs=3, batch_size=32, learning_rate=0.05, schedule="one_cycle", precision="float32"
)
JOB = TeacherJob("own:network", "bars", TRAINING, {"limit": 240}, seed=7)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 64, 3),
        )  # fmt: skip


def test_the_card_tells_of_the_weights_beside_it(
    bars: DataSet, device: torch.device, tmp_path: Path
) -> None:
    module = network()
    card = train_teacher(module, bars, JOB, tmp_path / "a", device)
    again = network(seed=1)
    assert teachers.load(tmp_path / "a", again) == card
    again.to(device)
    assert accuracy(again, bars.test, bars) == card.accuracy
    assert accuracy(again, bars.validation, bars) == card.validation_accuracy
    assert card.accuracy > 0.6, "three classes: a guess is right once in three"
    for name, tensor in module.state_dict().items():  # trained in place
        assert torch.equal(tensor, again.state_dict()[name])


def test_the_card_tells_what_was_asked_for(
    bars: DataSet, device: torch.device, tmp_path: Path
) -> None:
    card = train_teacher(network(), bars, JOB, tmp_path, device)
    assert (card.network, card.dataset, card.seed) == ("own:network", "bars", 7)
    assert card.data == {"limit": 240}
    assert card.recipe == to_plain(TRAINING)
    assert card.versions["torch"] == torch.__version__
    assert card.versions["esnac"] == esnac.__version__
    assert card.seconds > 0
    # conv 8 x 9, norm 2 x 8, linear 512 x 3 + 3; MACs: 8 x 9 x 64 + 512 x 3
    assert card.params == 72 + 16 + 1539
    assert card.macs == 4608 + 1536
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "weights.safetensors"]


def test_an_interrupted_training_goes_on_to_the_same_end(
    bars: DataSet, device: torch.device, tmp_path: Path
) -> None:
    whole = train_teacher(network(), bars, JOB, tmp_path / "whole", device)
    epochs: list[int] = []

    def interrupt(record: EpochRecord) -> None:
        epochs.append(record.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher(network(), bars, JOB, tmp_path / "broken", device, interrupt)
    assert teachers.find([tmp_path], "broken") is None, "half a teacher is none"
    card = train_teacher(network(), bars, JOB, tmp_path / "broken", device, interrupt)
    assert epochs == [0, 1, 2], "no epoch twice"
    assert card.accuracy == pytest.approx(whole.accuracy, abs=0.03)
    one, other = network(), network()
    teachers.load(tmp_path / "whole", one)
    teachers.load(tmp_path / "broken", other)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_network_that_cannot_be_compressed_is_told_before_it_is_trained(
    bars: DataSet, device: torch.device, tmp_path: Path
) -> None:
    class Folded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1).flatten(1)[:, :3]

    with pytest.raises(EsnacError):
        train_teacher(Folded(), bars, JOB, tmp_path / "a", device)
    assert not (tmp_path / "a").exists()
