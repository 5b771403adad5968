from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esnac.data import DataSet, DataSettings, from_tensors
from esnac.data.batches import training_batches
from esnac.distillation import targets as targets_module
from esnac.distillation.targets import TeacherTargets

CPU = torch.device("cpu")


class Teacher(nn.Module):
    """Counts the images it has seen in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * 36, 3)
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.fc(self.drop(self.norm(self.conv(x)).flatten(1)))


@pytest.fixture
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return from_tensors((images, torch.arange(60) % 3), None, DataSettings(padding=1, flip=True))


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher()


def test_targets_are_those_of_the_batches_that_a_student_sees(
    data: DataSet, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets_module, "inference_batch", lambda *_: 16)
    targets = TeacherTargets(teacher, data, seed=7, device=CPU).epoch(3)
    assert targets.shape == (len(data.train), 3)
    assert targets.dtype == torch.float32
    teacher.eval()
    shuffle = torch.Generator().manual_seed(1)
    for inputs, _, indices in training_batches(
        data, 10, order_generator=shuffle, augmentation_seed=7, epoch=3
    ):
        torch.testing.assert_close(targets[indices], teacher(inputs), rtol=1e-5, atol=1e-5)


def test_each_epoch_is_computed_once(data: DataSet, teacher: Teacher) -> None:
    targets = TeacherTargets(teacher, data, seed=7, device=CPU)
    start = teacher.images
    first = targets.epoch(0)
    assert targets.epoch(0) is first
    assert not torch.equal(first, targets.epoch(1))
    assert teacher.images - start == 2 * len(data.train)


def test_without_augmentation_all_epochs_are_one(teacher: Teacher) -> None:
    images = torch.zeros(30, 1, 6, 6, dtype=torch.uint8)
    plain = from_tensors((images, torch.arange(30) % 3))
    targets = TeacherTargets(teacher, plain, seed=7, device=CPU)
    assert targets.epoch(5) is targets.epoch(0)


def test_the_store_is_limited(data: DataSet, teacher: Teacher) -> None:
    size = len(data.train) * 3
    # too small for FEW_EPOCHS epochs of float32, so float16: two epochs of `size` * 2 bytes fit
    targets = TeacherTargets(teacher, data, seed=7, device=CPU, max_bytes=5 * size)
    assert targets.epoch(0).dtype == torch.float16
    targets.epoch(1)
    before = teacher.images
    assert torch.equal(targets.epoch(2), targets.epoch(2))
    assert teacher.images - before == 2 * len(data.train)
    assert targets.stored_bytes == 4 * size


def test_the_teacher_is_left_as_it_was(data: DataSet, teacher: Teacher) -> None:
    teacher.norm.eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    random = torch.get_rng_state()
    targets = TeacherTargets(teacher, data, seed=7, device=CPU)
    assert not targets.epoch(0).requires_grad
    assert not targets.epoch(0).is_inference()
    assert teacher.training
    assert not teacher.norm.training
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_the_precision_is_the_wanted_one(data: DataSet, teacher: Teacher) -> None:
    exact = TeacherTargets(teacher, data, seed=7, device=CPU, precision="float32").epoch(0)
    rough = TeacherTargets(teacher, data, seed=7, device=CPU, precision="bfloat16").epoch(0)
    assert not torch.equal(exact, rough)
    assert torch.equal(rough, rough.bfloat16().float())
    torch.testing.assert_close(exact, rough, rtol=0.1, atol=0.1)
