from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError
from esnac.quantization.recalibration import recalibrate


def test_statistics_are_means_over_the_batches_of_what_norms_see_now() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.3))
    model.train()
    model(torch.full((4, 3), 9.0) * torch.randn(4, 3))
    batches = [torch.randn(10, 3) for _ in range(4)]
    assert recalibrate(model, batches) == 1
    seen = torch.stack([model[1](batch) for batch in batches])
    torch.testing.assert_close(model[2].running_mean, seen.mean(dim=(0, 1)))
    torch.testing.assert_close(model[2].running_var, seen.var(dim=1).mean(0))
    assert model[2].momentum == 0.3
    assert all(module.training for module in model.modules())


def test_without_norms_or_batches() -> None:
    assert recalibrate(nn.Linear(2, 2), []) == 0
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(3)
    with pytest.raises(EsnacError, match="No batches"):
        recalibrate(norm, [])
    assert norm.running_mean.tolist() == [3, 3]
