from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from esnac.surrogate.acquisition import expected_improvement_of_product

NORMAL = NormalDist()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def improvement(weight, mean, variance, best):
    return expected_improvement_of_product(
        tensor(weight), tensor(mean), tensor(variance), best
    ).item()


def by_quadrature(weight, mean, variance, best):
    """The integral of (w e^z - best) p(z) above z = log(best / w)."""
    s = math.sqrt(variance)

    def gain(u):
        return (weight * math.exp(mean + s * u) - best) * NORMAL.pdf(u)

    start = (math.log(best / weight) - mean) / s
    return quad(gain, max(start, -12), max(start, -12) + 24, epsabs=0, epsrel=1e-11, limit=400)[0]


@pytest.mark.parametrize("best", [0.05, 0.7, 1.3])
@pytest.mark.parametrize("variance", [1e-4, 0.04, 1.0])
@pytest.mark.parametrize("mean", [-1.5, -0.2, 0.3])
@pytest.mark.parametrize("weight", [0.1, 0.93, 2.0])
def test_equals_the_integral(weight, mean, variance, best):
    expected = by_quadrature(weight, mean, variance, best)
    found = improvement(weight, mean, variance, best)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-15)


def test_equals_an_average_of_samples():
    z = -0.1 + 0.5 * np.random.default_rng(0).standard_normal(4_000_000)
    expected = np.maximum(0.9 * np.exp(z) - 0.8, 0).mean()
    assert improvement(0.9, -0.1, 0.25, 0.8) == pytest.approx(expected, abs=1e-3 * expected + 2e-4)


def test_known_values():
    """w = 1, mean 0, s = 1, best 1: e^(1/2) Phi(1) - 1/2; a best of nothing: w e^(mean + s^2/2)."""
    assert improvement(1.0, 0.0, 1.0, 1.0) == pytest.approx(
        math.exp(0.5) * NORMAL.cdf(1.0) - 0.5, rel=1e-12
    )
    assert improvement(1.0, 0.0, 1.0, 1.0) == pytest.approx(0.8871, abs=1e-4)
    assert improvement(0.7, 0.2, 0.3, 1e-200) == pytest.approx(0.7 * math.exp(0.35), rel=1e-12)


def test_without_variance_it_is_the_difference():
    assert improvement(0.9, 0.1, 0.0, 0.5) == pytest.approx(0.9 * math.exp(0.1) - 0.5, rel=1e-6)
    assert improvement(0.9, 0.1, 0.0, 1.5) == 0


@pytest.mark.parametrize("weight", [0.0, -0.3])
def test_a_value_that_cannot_be_positive_improves_nothing(weight):
    """A student larger than its teacher has c (2 - c) < 0."""
    assert improvement(weight, 5.0, 1.0, 0.1) == 0


def test_far_from_hope_it_is_small_and_never_negative():
    means = torch.linspace(-40, -1, 200, dtype=torch.float64)
    found = expected_improvement_of_product(tensor(0.9), means, tensor(0.01), 0.8)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert (found[:50] == 0).all()
    tail = improvement(0.9, -0.9, 0.01, 0.8)
    assert tail == pytest.approx(by_quadrature(0.9, -0.9, 0.01, 0.8), rel=1e-6)
    assert 0 < tail < 1e-12


def test_members_and_candidates_broadcast():
    """3 members x 4 candidates."""
    weight = torch.rand(4, dtype=torch.float64)
    mean, variance = torch.rand(2, 3, 4, dtype=torch.float64)
    found = expected_improvement_of_product(weight, mean, variance, 0.5)
    assert found.shape == (3, 4)
    one = improvement(weight[2].item(), mean[1, 2].item(), variance[1, 2].item(), 0.5)
    assert found[1, 2].item() == pytest.approx(one, rel=1e-12)
