from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esnac.errors import SettingsError, TrainingError
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.pruning.importance import by_scales
from esnac.pruning.removal import removable, remove
from esnac.pruning.slimming import (
    choose,
    norm_scales,
    penalty,
    require_alive,
    saved_by_minimum,
    strength_for,
    threshold,
)
from tests.pruning.conftest import Digits, distil, plain


def student(module: nn.Module) -> StudentNetwork:
    graph = trace(module, (1, 16, 16))
    return StudentNetwork(graph, teacher_weights(graph, module.state_dict())).eval()


def with_scales(*values: Tensor) -> StudentNetwork:
    module = plain([len(v) for v in values])
    with torch.no_grad():
        for scale, value in zip(norm_scales(module).values(), values, strict=True):
            scale.copy_(value)
    return student(module)


def slim(network: StudentNetwork, sparsity: float, minimum: int = 1) -> StudentNetwork:
    space = Space(network.graph, tie="dependency")
    scores, free = by_scales(network, space.groups), removable(space, by_scales=True)
    return remove(network, space, choose(space, scores, sparsity, free, minimum))


def widths(network: StudentNetwork) -> list[int]:
    return [layer.out_shape[0] for layer in network.graph.layers if layer.kind == "conv"]


def test_the_strength_of_the_measured_run() -> None:
    """Lambda 0.02 with a cosine from 0.05 over 660 steps: a reach of 3.3."""
    rates = [0.025 * (1 + math.cos(math.pi * step / 660)) for step in range(660)]
    assert strength_for(rates, 0.9) == pytest.approx(0.02, rel=0.002)
    assert strength_for(rates, 0.9, reach=5) == pytest.approx(0.02 * 5 / 3.3, rel=0.002)
    with pytest.raises(SettingsError, match="learning_rate"):
        strength_for([], 0.9)


def test_a_constant_gradient_moves_a_scale_as_far_as_the_rule_says() -> None:
    scale = nn.Parameter(torch.tensor([10.0]))
    value = penalty([scale], strength_for([0.01] * 1000, 0.9, reach=3.0))
    optimizer = torch.optim.SGD([scale], 0.01, momentum=0.9)
    for _ in range(1000):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert scale.item() == pytest.approx(7.0, abs=0.05)


def test_the_penalty_and_its_gradient() -> None:
    scale = nn.Parameter(torch.tensor([0.5, -2.0, 0.0]))
    value = penalty([scale], 0.1)()
    value.backward()
    assert value.item() == pytest.approx(0.25)
    assert scale.grad is not None
    assert scale.grad.tolist() == pytest.approx([0.1, -0.1, 0.0])


def test_one_threshold_over_all_layers() -> None:
    """Scales 0.1 .. 1.6 over four layers of 4; at 50 % what is not above 0.9 goes."""
    network = with_scales(*(torch.arange(1, 17) / 10).split(4))
    space = Space(network.graph, tie="dependency")
    scores, free = by_scales(network, space.groups), removable(space, by_scales=True)
    assert threshold(space, scores, 0.5, free) == pytest.approx(0.9)
    assert len(saved_by_minimum(space, scores, 0.5, free)) == 2
    assert widths(slim(network, 0.5)) == [1, 1, 3, 4]
    assert widths(slim(network, 0.5, minimum=2)) == [2, 2, 3, 4]


@pytest.mark.parametrize("seed", range(8))
def test_no_layer_is_emptied_at_seventy_percent(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = [
        torch.rand(w, generator=generator) ** 4 * s
        for w, s in zip((8, 8, 16, 16), (0.1, 1, 0.01, 2), strict=True)
    ]
    small = slim(with_scales(*scales), 0.7)
    assert min(widths(small)) >= 1
    assert small(torch.randn(2, 1, 16, 16)).isfinite().all()


def test_nothing_to_remove_is_an_error() -> None:
    rising = with_scales(*[torch.arange(1.0, 5.0)] * 4)
    with pytest.raises(SettingsError, match="removes nothing"):
        slim(rising, 0.5, minimum=4)
    network = with_scales(*[torch.ones(4)] * 4)
    space = Space(network.graph, tie="dependency", protected=["*"])
    scores = by_scales(network, space.groups)
    with pytest.raises(SettingsError, match="No channels of this network can go"):
        choose(space, scores, 0.5, removable(space, by_scales=True))
    with pytest.raises(SettingsError, match="have the same importance"):
        slim(network, 0.5)
    with pytest.raises(SettingsError, match=r"sparsity must be in \(0, 1\)"):
        slim(network, 1.0)


def test_a_network_without_norms() -> None:
    with pytest.raises(SettingsError, match="cannot be slimmed"):
        norm_scales(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_dead_networks_are_told() -> None:
    require_alive([torch.tensor([0.001, 0.0]), torch.tensor([0.5])], 0.02)
    with pytest.raises(TrainingError, match="dead: all 3 scales.*strength 0.05"):
        require_alive([torch.tensor([0.001, 0.0]), torch.tensor([-0.009])], 0.05)


@pytest.fixture(scope="module")
def sparse(digits: Digits) -> tuple[nn.Module, float]:
    module = plain()
    value = penalty(norm_scales(module).values(), 0.02)
    return module, digits.fit(module, 30, 0.05, penalty=value)


@pytest.mark.slow
def test_half_of_the_channels_of_digits_go_at_no_loss(
    digits: Digits, sparse: tuple[nn.Module, float]
) -> None:
    """Sparse 0.9844; at 50 % 0.9844 with 15,241 parameters."""
    module, accuracy = sparse
    scales = torch.cat([s.detach().abs() for s in norm_scales(module).values()])
    near_zero = (scales < 0.01).float().mean().item()
    small = slim(student(module), 0.5)
    at_once = digits.accuracy(small)
    params = cost(small.graph).params
    print(f"sparse {accuracy:.4f}, near zero {near_zero:.2f}, 50 % {at_once:.4f}, {params}")
    assert near_zero > 0.5
    assert at_once >= accuracy - 0.02
    assert params < 0.3 * 65834


@pytest.mark.slow
def test_seventy_percent_of_the_channels_of_digits_go_with_distillation(
    digits: Digits, sparse: tuple[nn.Module, float], teacher: nn.Module
) -> None:
    """At 70 % 5,960 parameters; 0.9800 after fine-tuning and 0.9822 distilled."""
    module, accuracy = sparse
    small = slim(student(module), 0.7)
    at_once = digits.accuracy(small)
    tuned, distilled = copy.deepcopy(small), copy.deepcopy(small)
    fine = digits.fit(tuned, 5, 0.02)
    best = digits.fit(distilled, 5, 0.02, loss=distil(teacher, 3.0, 0.9))
    params = cost(small.graph).params
    print(f"70 % {at_once:.4f}, fine-tuned {fine:.4f}, distilled {best:.4f}, {params}")
    assert best >= accuracy - 0.03
    assert best >= fine - 0.03
    assert params <= 0.12 * 65834
    assert params == sum(np.prod(p.shape) for p in small.parameters())


@pytest.mark.slow
def test_too_strong_a_penalty_kills_and_is_told(digits: Digits) -> None:
    module = plain((16, 32, 32, 64))
    scales = norm_scales(module)
    digits.fit(module, 15, 0.05, penalty=penalty(scales.values(), 0.05))
    with pytest.raises(TrainingError, match="dead"):
        require_alive(scales.values(), 0.05)
