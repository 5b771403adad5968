from __future__ import annotations

import math

import pytest
import torch

from esnac.surrogate.gaussian_process import EmbeddingGP, exact, leave_one_out

NOISE = 0.05


def points(n, seed=0, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    h = h + spread * torch.randn(n, 6, generator=generator, dtype=torch.float64)
    y = torch.rand(n, generator=generator, dtype=torch.float64)
    return h / h.norm(dim=1, keepdim=True), y


def kernel(a, b):
    """The formula, in plain loops."""
    rows = [
        [math.exp(-sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 0.02) for v in b.tolist()]
        for u in a.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def predict(h, y, new):
    """Mean and variance of f at `new`, by the textbook inverse."""
    inverse = torch.linalg.inv(kernel(h, h) + NOISE * torch.eye(len(h), dtype=torch.float64))
    cross = kernel(new, h)
    return cross @ inverse @ y, 1 - (cross @ inverse * cross).sum(1)


def test_kernel_follows_the_formula():
    h, y = points(20)
    with torch.no_grad():
        covariance = EmbeddingGP(h, y, 0.1, NOISE).forward(h).covariance_matrix
    assert covariance.dtype == torch.float64
    expected = kernel(h, h)
    assert ((expected > 0.01) & (expected < 0.99)).any()  # neither all alike nor all apart
    torch.testing.assert_close(covariance, expected, atol=1e-12, rtol=0)


def test_kernel_at_a_known_distance():
    h = torch.tensor([[1.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
    prior = EmbeddingGP(h, h[:, 0], 0.1, NOISE).forward(h)
    assert prior.covariance_matrix[0, 1].item() == pytest.approx(math.exp(-0.5))
    assert torch.equal(prior.mean, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 20])
def test_leave_one_out_equals_leaving_each_one_out(n):
    h, y = points(n)
    total = 0.0
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        mean, variance = predict(h[rest], y[rest], h[i : i + 1])
        variance = variance + NOISE
        total += -0.5 * math.log(2 * math.pi * variance) - (y[i] - mean) ** 2 / (2 * variance)
    value = leave_one_out(EmbeddingGP(h, y, 0.1, NOISE), h, y)
    assert value.item() == pytest.approx(float(total) / n, abs=1e-9)


def test_gradient_of_leave_one_out():
    h, y = points(5)
    gp = EmbeddingGP(h, y, 0.1, NOISE)
    assert torch.autograd.gradcheck(lambda h: leave_one_out(gp, h, y), h.clone().requires_grad_())


@pytest.mark.parametrize("n", [20, 900])  # GPyTorch would solve iteratively from 800 on
def test_posterior_equals_the_textbook(n):
    h, y = points(n, spread=0.1 if n == 20 else 0.3)
    new = points(7, seed=0)[0]
    with torch.no_grad(), exact():
        posterior = EmbeddingGP(h, y, 0.1, NOISE).eval().posterior(new[:, None])
        mean, variance = posterior.mean.flatten(), posterior.variance.flatten()
    expected_mean, expected_variance = predict(h, y, new)
    torch.testing.assert_close(mean, expected_mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(variance, expected_variance, atol=1e-9, rtol=0)


def test_tiny_noise_is_kept():
    h, y = points(3)
    assert EmbeddingGP(h, y, 0.1, 1e-6).likelihood.noise.item() == pytest.approx(1e-6)
