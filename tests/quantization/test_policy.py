from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac import networks
from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.quantization.attach import Plan, attach, verify_fired
from esnac.quantization.lsq import LSQActivationSettings, LSQWeightSettings
from esnac.quantization.minmax import MinMaxWeightSettings
from esnac.quantization.policy import Policy, make_plan
from esnac.quantization.uniform_weight import UniformSettings

W, A = LSQWeightSettings(), LSQActivationSettings()
X = torch.zeros(2, 1, 8, 8)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 2, 1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def bits(plan: Plan) -> tuple[dict[str, float], dict[str, int]]:
    return (
        {name: settings.bits for name, settings in plan.weights.items()},
        {path: settings.bits for path, settings in plan.activations.items()},
    )


def test_first_and_last_biases_and_norms_stay_as_they_are() -> None:
    plan = make_plan(network(), Policy(2, 4), W, A, [X])
    assert bits(plan) == ({"2.weight": 2, "3.weight": 2}, {"2": 4, "3": 4})
    model = network()
    attach(model, plan)
    model(torch.randn(2, 1, 8, 8))
    verify_fired(model)


@pytest.mark.parametrize(
    ("policy", "weights", "activations"),
    [
        (
            Policy(2, 4, ends=8),
            {"0.weight": 8, "2.weight": 2, "3.weight": 2, "5.weight": 8},
            {"0": 8, "2": 4, "3": 4, "5": 8},
        ),
        (Policy(2, 4, min_numel=100), {"2.weight": 2}, {"2": 4, "3": 4}),
        (Policy(2, 32), {"2.weight": 2, "3.weight": 2}, {}),
        (Policy(32, 4), {}, {"2": 4, "3": 4}),
        (
            Policy(2, 4, overrides=("*=3", "[23]=4/8", "3.weight=5", "0=32")),
            {"2.weight": 4, "3.weight": 5, "5.weight": 3},
            {"2": 8, "3": 8, "5": 3},
        ),
    ],
)
def test_bits(policy: Policy, weights: dict[str, float], activations: dict[str, int]) -> None:
    assert bits(make_plan(network(), policy, W, A, [X])) == (weights, activations)


def test_alike_needs_no_order_and_fractions_are_kept() -> None:
    plan = make_plan(network(), Policy(4, 4, ends=4), W, A)
    assert set(bits(plan)[0].values()) == {4}
    fine = make_plan(network(), Policy(2.4, 32), MinMaxWeightSettings(), None, [X])
    assert bits(fine)[0] == {"2.weight": 2.4, "3.weight": 2.4}


def test_indices_are_not_quantised() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    plan = make_plan(model, Policy(4, 4, ends=4), W, A)
    assert sorted(plan.weights) == ["0.weight", "1.weight", "2.weight"]
    assert sorted(plan.activations) == ["1", "2"]


def test_an_override_for_no_layer_names_near_ones() -> None:
    model = nn.Sequential()
    model.add_module("conv_one", nn.Linear(4, 4))
    with pytest.raises(EsnacError, match="Unknown layer 'conv_on'. Did you mean 'conv_one'"):
        make_plan(model, Policy(4, 4, ends=4, overrides=("conv_on=8",)), W, A)


def test_nothing_left_to_quantise_is_an_error() -> None:
    with pytest.raises(EsnacError, match="Nothing of the network's 4 layers is left"):
        make_plan(network(), Policy(2, 32, min_numel=10**6), W, A, [X])


def test_a_students_layers_have_two_names() -> None:
    with torch.device("meta"):
        network = networks.build("resnet20", 10)
    student = StudentNetwork(trace(network, (3, 32, 32)))
    rules = (
        "stages.2.*=2/4",
        "stages_0_0_conv1=3",
        "stages.0.0.conv2.weight=6",
        "stages.1.0.*=2.4",
    )
    plan = make_plan(student, Policy(8, 8, ends=8, overrides=rules), UniformSettings(8), A)
    widths = {name: settings.bits for name, settings in plan.weights.items()}
    assert widths["stages_2_1_conv2.weight"] == 2
    assert (widths["stages_0_0_conv1.weight"], widths["stages_0_0_conv2.weight"]) == (3, 6)
    assert widths["stages_0_1_conv1.weight"] == 8
    assert plan.activations["stages_2_1_conv2"].bits == 4
    assert (widths["stages_1_0_conv1.weight"], plan.activations["stages_1_0_conv1"].bits) == (
        2.4,
        3,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": 0}, "weights must be from 1 to 8, or 32 for none; got 0"),
        ({"weights": 33}, "weights must be from 1 to 8"),
        ({"activations": 33}, "activations must be whole, from 1 to 8"),
        ({"ends": 0}, "ends must be whole"),
        ({"min_numel": -1}, "min_numel must be 0 or more"),
        ({"overrides": ("conv1",)}, "NAME=BITS"),
        ({"overrides": ("conv1=4/x",)}, "NAME=BITS"),
        ({"overrides": ("conv1=inf",)}, "NAME=BITS"),
        ({"overrides": ("conv1=nan",)}, "NAME=BITS"),
        ({"overrides": ("conv1=9",)}, "conv1=9: weights must be from 1 to 8"),
        ({"overrides": ("conv1=4/2.5",)}, "activations must be whole"),
    ],
)
def test_policies_that_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(EsnacError, match=message):
        Policy(**values)
