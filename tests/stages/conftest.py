"""Three classes of small images that a few epochs can tell apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from esnac.data import DataSet, DataSettings


@pytest.fixture(scope="session")
def bars(make_bars: Callable[..., DataSet]) -> DataSet:
    return make_bars(240, 60, DataSettings(padding=1, flip=True))


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are compared; on a GPU cuDNN would otherwise choose among algorithms."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
