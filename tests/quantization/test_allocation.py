from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esnac.errors import EsnacError
from esnac.quantization.allocation import allocate_bits, allocate_points, gradient_norms, reallocate
from esnac.quantization.attach import Plan
from esnac.quantization.lsq import LSQWeightSettings
from esnac.quantization.points import CodebookSettings
from esnac.quantization.uniform_weight import UniformSettings

NORMS = st.lists(st.one_of(st.just(0.0), st.floats(0, 1e9)), min_size=1, max_size=12)


@given(NORMS, st.data())
def test_the_budget_is_kept_and_every_weight_has_a_bit(
    norms: list[float], data: st.DataObject
) -> None:
    named = {f"layer{i}": norm for i, norm in enumerate(norms)}
    numels = {name: data.draw(st.integers(1, 10_000)) for name in named}
    budget = sum(numels.values()) + data.draw(st.integers(0, 100_000))
    bits = allocate_bits(named, numels, budget)
    assert sum(bits[name] * numels[name] for name in named) <= budget
    assert all(1 <= b <= 8 for b in bits.values())
    assert bits == allocate_bits(named, numels, budget)
    left = budget - sum(bits[name] * numels[name] for name in named)
    assert all(bits[name] == 8 or numels[name] > left for name in named), "nothing is wasted"


def test_bits_go_where_the_loss_feels_them() -> None:
    # 100 weights each; gains per bit at 1 -> 2: 8/9 norm^2, 2 -> 3: (1/9 - 1/49) norm^2.
    # With norms 4 and 1: 14.2 before 1.45 before 0.89 before 0.25 (3 -> 4: 1/49 - 1/225).
    numels = {"a": 100, "b": 100}
    found = [allocate_bits({"a": 4.0, "b": 1.0}, numels, 100 * n) for n in range(2, 7)]
    assert [(bits["a"], bits["b"]) for bits in found] == [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2)]


def test_at_equal_norms_a_large_tensor_waits() -> None:
    assert allocate_bits({"a": 1.0, "b": 1.0}, {"a": 1000, "b": 10}, 1090) == {"a": 1, "b": 8}


def test_zero_gradients_share_alike() -> None:
    assert allocate_bits(dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 5), 30) == dict.fromkeys(
        "abc", 2
    )
    assert allocate_points(dict.fromkeys("abc", 0.0), 4) == dict.fromkeys("abc", 4)


@given(NORMS, st.integers(2, 64))
def test_the_sum_of_points_is_conserved(norms: list[float], points: int) -> None:
    named = {f"layer{i}": norm for i, norm in enumerate(norms)}
    found = allocate_points(named, points)
    assert sum(found.values()) == points * len(named)
    assert min(found.values()) >= max(2, points // 2)


def test_points_by_hand() -> None:
    # Both keep 4 of 8; 8 are dealt 3 : 1.
    assert allocate_points({"a": 3.0, "b": 1.0}, 8) == {"a": 10, "b": 6}


def test_what_cannot_be_allocated() -> None:
    with pytest.raises(EsnacError, match="99 bits are too few for 100 weights"):
        allocate_bits({"a": 1.0}, {"a": 100}, 99)
    with pytest.raises(EsnacError, match="at least 2 points"):
        allocate_points({"a": 1.0}, 1)
    with pytest.raises(EsnacError, match="gradient of a has the norm nan"):
        allocate_bits({"a": float("nan")}, {"a": 1}, 1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))


NAMES = ["0.weight", "1.weight", "2.weight"]


def test_a_plan_with_bits_by_gradients() -> None:
    """0.weight is felt most; the ends of other bits keep theirs."""
    plan = Plan({**dict.fromkeys(NAMES[:2], UniformSettings(3)), NAMES[2]: UniformSettings(8)})
    found = reallocate(plan, network(), {NAMES[0]: 100.0, NAMES[1]: 1e-3, NAMES[2]: 1.0}, 3)
    assert [s.bits for s in found.weights.values()] == [5, 1, 8]
    plan = Plan(dict.fromkeys(NAMES[:2], LSQWeightSettings(3)))
    found = reallocate(plan, network(), {NAMES[0]: 100.0, NAMES[1]: 1e-3}, 3)
    assert [s.bits for s in found.weights.values()] == [4, 2]


def test_a_plan_with_points_by_gradients() -> None:
    plan = Plan(dict.fromkeys(NAMES[:2], CodebookSettings(8)))
    found = reallocate(plan, network(), {NAMES[0]: 3.0, NAMES[1]: 1.0}, 3)
    assert [s.levels for s in found.weights.values() if isinstance(s, CodebookSettings)] == [10, 6]


def test_one_weight_shares_with_none() -> None:
    plan = Plan({NAMES[0]: UniformSettings(3), NAMES[1]: UniformSettings(8)})
    with pytest.raises(EsnacError, match="need two weights of 3 bits"):
        reallocate(plan, network(), dict.fromkeys(NAMES[:2], 1.0), 3)


def test_gradient_norms() -> None:
    """Of mean over outputs of w x: the gradient is x, here 3-4-0 and 0-0-12: mean norm 8.5."""
    network = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [torch.tensor([[3.0, 4, 0]]), torch.tensor([[0.0, 0, 12]])]

    def loss(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network.get_submodule("0")(batch).sum()

    norms = gradient_norms(network, ["0.weight", "0.bias"], batches, loss)
    assert norms == {"0.weight": pytest.approx(8.5), "0.bias": pytest.approx(1)}
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(EsnacError, match=r"No parameter '2\.weight'"):
        gradient_norms(network, ["2.weight"], batches, loss)
    with pytest.raises(EsnacError, match="No batches"):
        gradient_norms(network, ["0.weight"], [], loss)
