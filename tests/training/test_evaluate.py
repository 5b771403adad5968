from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from esnac import networks
from esnac.data import DataSet, ImageSet, from_tensors
from esnac.errors import DataError
from esnac.training import accuracy, evaluate, logits


@pytest.fixture
def data() -> DataSet:
    """Class k is brightest in channel k; half of the test labels are wrong."""
    labels = torch.arange(120) % 3
    images = torch.zeros(120, 3, 2, 2, dtype=torch.uint8)
    images[torch.arange(120), labels] = 200
    wrong = labels[:24].clone()
    wrong[::2] = (wrong[::2] + 1) % 3
    return from_tensors((images, labels), (images[:24], wrong))


class Brightest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return x.mean(dim=(2, 3))


def test_accuracy_is_the_fraction_of_right_images(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Brightest()
    assert accuracy(model, data.test, data) == 0.5
    monkeypatch.setattr(evaluate, "inference_batch", lambda *_: 7)
    assert accuracy(model, data.test, data) == 0.5
    assert accuracy(model, data.validation, data) == 1.0
    assert model.training


def test_logits_keep_the_order(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "inference_batch", lambda *_: 10)
    found = logits(Brightest(), data.train, data)
    assert found.shape == (len(data.train), 3)
    assert torch.equal(found.argmax(dim=1), data.train.labels)
    assert not found.requires_grad


def test_no_images(data: DataSet) -> None:
    none = ImageSet(data.test.images[:0], data.test.labels[:0])
    with pytest.raises(DataError, match="no images"):
        accuracy(Brightest(), none, data)


def test_the_memory_format_of_the_weights_changes_nothing() -> None:
    """Training leaves other strides behind than a file does; the accuracy must be the same."""
    torch.manual_seed(0)
    model = networks.build("resnet20", 10)
    images = torch.randint(256, (50, 3, 16, 16), dtype=torch.uint8)
    data = from_tensors((images, torch.arange(50) % 10))
    plain = logits(model, data.train, data)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(plain, logits(model, data.train, data))


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is on, as it may be on a GPU. Not by monkeypatch, which cannot undo it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


def tf32_allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_float32_is_not_tf32(data: DataSet, tf32: None) -> None:
    seen = []

    class Looks(Brightest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(tf32_allowed())
            return super().forward(x)

    accuracy(Looks(), data.test, data)
    assert tf32_allowed() == (True, True)
    logits(Looks(), data.test, data)
    assert tf32_allowed() == (True, True)
    assert set(seen) == {(False, False)}


def test_tf32_is_restored_after_an_error(data: DataSet, tf32: None) -> None:
    class Fails(Brightest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        accuracy(Fails(), data.test, data)
    assert tf32_allowed() == (True, True)
