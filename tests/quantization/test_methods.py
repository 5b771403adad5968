from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from esnac.quantization.attach import attach, calibrate, verify_fired, weight_codes
from esnac.quantization.codes import decode
from esnac.quantization.dorefa import DoReFaActivationSettings, DoReFaWeightSettings
from esnac.quantization.methods import Method, plan_of
from esnac.quantization.minmax import MinMaxActivationSettings
from esnac.quantization.points import CodebookSettings
from esnac.quantization.policy import FLOAT, Policy
from esnac.quantization.uniform_weight import UniformSettings

INPUTS = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_runs_and_its_codes_are_the_weights(method: Method) -> None:
    model = network()
    attach(model, plan_of(model, method, Policy(2, 4, ends=8), inputs=[INPUTS]))
    calibrate(model, [INPUTS])
    model.eval()(INPUTS)
    verify_fired(model)
    codes = weight_codes(model)
    levels = [codes[f"{layer}.weight"].levels for layer in (0, 3, 6)]
    assert levels == [256, 4, 256]
    for name, found in codes.items():
        assert torch.equal(decode(found), model.get_submodule(name[0]).weight)  # type: ignore[arg-type]


def test_float_inputs_stay_float() -> None:
    model = network()
    plan = plan_of(model, "lsq", Policy(4, FLOAT, ends=8), inputs=[INPUTS])
    assert not plan.activations
    assert [settings.bits for settings in plan.weights.values()] == [8, 4, 8]


def test_dorefa_suits_each_layer() -> None:
    plan = plan_of(network(), "dorefa", Policy(4, 4, ends=8), inputs=[INPUTS])
    variants = [s.variant for s in plan.weights.values() if isinstance(s, DoReFaWeightSettings)]
    assert variants == ["mean", "mean", "row"]
    first, *others = plan.activations.values()
    assert first == MinMaxActivationSettings(8)  # the images have negative values
    assert others == [DoReFaActivationSettings(4), DoReFaActivationSettings(8)]


def test_points_but_for_the_ends() -> None:
    plan = plan_of(network(), "dq", Policy(3, FLOAT, ends=8), bucket=32, inputs=[INPUTS])
    ends = UniformSettings(bits=8, rows=32)
    assert list(plan.weights.values()) == [ends, CodebookSettings(8, rows=32), ends]
