"""Three classes of small images that a few epochs can tell apart."""

from __future__ import annotations

import pytest
import torch

from esnac.data import DataSet, DataSettings, from_tensors


@pytest.fixture(scope="session")
def bars(device: torch.device) -> DataSet:
    """Each class has a bright bar somewhere else on a noisy 8x8 image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    images = torch.randint(120, (240, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, 2 * label + 1, 2:6] += 60
    return from_tensors((images, labels), None, DataSettings(padding=1, flip=True)).to(device)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are compared; on a GPU cuDNN would otherwise choose among algorithms."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
