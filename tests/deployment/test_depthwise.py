from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.deployment.depthwise import as_depthwise, replace_unfoldable, unfoldable_norms
from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks import build


def test_a_norm_by_hand() -> None:
    """x * 6 / 2 + 7 - 5 * 6 / 2: variance 3 and eps 1 make a deviation of 2."""
    norm = nn.BatchNorm2d(1, eps=1.0).eval()
    norm.running_mean.fill_(5)
    norm.running_var.fill_(3)
    nn.init.constant_(norm.weight, 6)
    nn.init.constant_(norm.bias, 7)
    conv = as_depthwise(norm)
    assert (conv.weight.item(), conv.bias.item()) == (3, -8)
    assert conv.groups == 1
    assert not conv.training


def test_one_without_an_affine_part() -> None:
    norm = nn.BatchNorm2d(3, affine=False).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(as_depthwise(norm)(x), norm(x), atol=1e-6)


def test_one_without_statistics_is_refused() -> None:
    with pytest.raises(EsnacError, match="running statistics"):
        as_depthwise(nn.BatchNorm2d(2, track_running_stats=False))


def test_which_norms_can_be_folded(pre_activation: StudentNetwork) -> None:
    """norm2 follows conv1 alone; norm1 reads what the sum reads too, `last` reads a sum."""
    assert unfoldable_norms(pre_activation.graph) == ["norm1", "last"]
    assert unfoldable_norms(trace(build("resnet20", 10), (3, 32, 32))) == []
    plain = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert len(unfoldable_norms(trace(plain, (1, 2, 2)))) == 1, "the first; none over features"

    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert len(unfoldable_norms(trace(plain, (1, 2, 2)))) == 1, "what it computes is not fixed"
    assert replace_unfoldable(plain, (1, 2, 2)) == []


def test_outputs_stay(pre_activation: StudentNetwork) -> None:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = pre_activation(x)
        assert replace_unfoldable(pre_activation, (1, 8, 8)) == ["norm1", "last"]
        difference = (pre_activation(x) - before).abs().max().item()
    print(f"depthwise: {difference:.2g}")
    assert difference <= 1e-5
    assert isinstance(pre_activation.last, nn.Conv2d)


def test_a_users_own_module() -> None:
    """Any module that can be traced, by the paths of its own parts; another one stays."""
    module = nn.Sequential(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)), nn.Flatten()).eval()
    assert replace_unfoldable(module, (2, 3, 3)) == ["0.1"]

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(torch.fft.fft2(x).real)

    assert replace_unfoldable(Odd().eval(), (2, 3, 3)) == []
