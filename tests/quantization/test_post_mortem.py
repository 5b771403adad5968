from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.graphs.masks import attach_masks, effective_weights
from esnac.quantization.attach import Plan, is_quantized
from esnac.quantization.lsq import LSQActivationSettings
from esnac.quantization.post_mortem import post_mortem
from esnac.quantization.uniform_weight import UniformSettings


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


PLAN = Plan({"0.weight": UniformSettings(bits=1)}, {"3": LSQActivationSettings(8)})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(training: bool, masked: bool) -> None:
    model = network()
    if masked:
        attach_masks(model, {"0.weight": torch.eye(4)[:, :2].bool()})
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found: list[torch.Tensor] = []

    def judge(judged: nn.Module) -> float:
        assert not any(module.training for module in judged.children())
        found.append(effective_weights(judged)["0.weight"])
        norm = judged.get_submodule("1")
        assert isinstance(norm.running_mean, torch.Tensor)
        return norm.running_mean.sum().item()

    inputs = torch.randn(64, 2)
    result = post_mortem(model, PLAN, judge, [inputs])
    assert len(found[0].unique()) <= 2 + masked
    expected = (inputs @ found[0].T + model[0].bias).mean(0).sum().item()
    assert result.plain == 0
    assert result.recalibrated == pytest.approx(expected, abs=1e-5)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not is_quantized(model)
    assert all(module.training is training for module in model.modules())


def test_an_error_of_the_judge_leaves_it_too() -> None:
    model = network()
    with pytest.raises(ZeroDivisionError):
        post_mortem(model, PLAN, lambda judged: 1 / 0, [torch.randn(8, 2)])
    assert not is_quantized(model)
