from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from esnac.errors import EsnacError, TrainingError
from esnac.surrogate.fit import converged, fit
from esnac.surrogate.settings import SurrogateSettings

SMALL = SurrogateSettings(hidden=8, layers=2, steps=5, tolerance=0.0)


def graphs(n, seed=0, nodes=10, features=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, nodes, features, generator=generator)
    return x, x[..., 0].mean(1) + 0.3 * x[:, -1, 1]


def fitted(x, y, lengths=None, settings=SMALL, seed=1):
    return fit(x, y, lengths, settings, torch.Generator().manual_seed(seed))


def reference(surrogate, x, y, new, lengths=None, new_lengths=None):
    """Posterior and expected improvement over max(y), point by point."""
    h, at = surrogate.embed(x, lengths), surrogate.embed(new, new_lengths)
    K = torch.exp(-(torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 0.02)
    K = K + 0.05 * torch.eye(len(h))
    means, variances, improvements = [], [], []
    normal = NormalDist()
    for point in at:
        k = torch.tensor(
            [math.exp(-float(((point - row) ** 2).sum()) / 0.02) for row in h]
        ).double()
        mean = float(k @ torch.linalg.solve(K, y.double()))
        variance = 1.0 - float(k @ torch.linalg.solve(K, k))
        sigma, best = math.sqrt(variance), float(y.max())
        u = (mean - best) / sigma
        means.append(mean)
        variances.append(variance)
        improvements.append((mean - best) * normal.cdf(u) + sigma * normal.pdf(u))
    return torch.tensor([means, variances, improvements], dtype=torch.float64)


@pytest.mark.parametrize("padded", [False, True])
def test_posterior_and_improvement_equal_the_formulas(padded):
    x, y = graphs(20)
    new, _ = graphs(20, seed=9)
    lengths = torch.arange(20) % 10 + 1 if padded else None
    new_lengths = lengths.flip(0) if padded else None
    settings = SurrogateSettings(hidden=8, layers=2, steps=5, tolerance=0.0, chunk=7)
    surrogate = fitted(x, y, lengths, settings)
    mean, variance = surrogate.posterior(new, new_lengths)
    improvement = surrogate.expected_improvement(new, new_lengths, float(y.max()))
    expected = reference(surrogate, x, y, new, lengths, new_lengths)
    assert mean.dtype == variance.dtype == improvement.dtype == torch.float64
    torch.testing.assert_close(mean, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, expected[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(improvement, expected[2], atol=1e-6, rtol=0)
    assert expected[2].max() > 1e-3  # the comparison is not of zeros


def test_training_takes_the_steps_of_adam_on_the_leave_one_out_objective():
    x, y = graphs(12)
    surrogate = fitted(x, y)
    y = y.double()
    embedding = fitted(x, y, settings=SurrogateSettings(hidden=8, layers=2, steps=0)).embedding
    embedding.requires_grad_(True)
    adam = torch.optim.Adam(embedding.parameters(), lr=1e-3, weight_decay=5e-4)
    for step in range(5):
        h = embedding(x).double()
        inverse = torch.linalg.inv(
            torch.exp(-((h[:, None] - h) ** 2).sum(2) / 0.02) + 0.05 * torch.eye(12)
        )
        variance = 1 / inverse.diagonal()
        objective = torch.distributions.Normal(
            y - (inverse @ y) * variance, variance.sqrt()
        ).log_prob(y).mean()  # fmt: skip
        assert surrogate.objective[step] == pytest.approx(objective.item(), abs=1e-6)
        adam.zero_grad()
        (-objective).backward()
        adam.step()
    torch.testing.assert_close(
        surrogate.embed(x), embedding(x).detach().double(), atol=1e-5, rtol=0
    )


def test_the_generator_alone_decides():
    x, y = graphs(10)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = fitted(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second, third = fitted(x, y), fitted(x, y, seed=2)
    assert first.objective == second.objective != third.objective
    assert torch.equal(first.embed(x), second.embed(x))
    assert torch.equal(first.posterior(x)[0], second.posterior(x)[0])


def ranks(values):
    return values.argsort().argsort().double()


def test_a_fitted_surrogate_ranks_unseen_graphs():
    x, y = graphs(60)
    new, truth = graphs(100, seed=7)
    settings = SurrogateSettings(hidden=16, layers=2, steps=100, tolerance=0.0, learning_rate=1e-2)
    surrogate = fitted(x, y, settings=settings)
    assert surrogate.objective[-1] > surrogate.objective[0] + 0.1
    mean = surrogate.posterior(new)[0]
    correlation = torch.corrcoef(torch.stack([ranks(mean), ranks(truth)]))[0, 1]
    assert correlation > 0.7


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_observations(n):
    x, y = graphs(n)
    surrogate = fitted(x, y)
    mean, variance = surrogate.posterior(x)
    if n == 1:  # k = 1: mean y / 1.05, variance 1 - 1 / 1.05
        assert mean.item() == pytest.approx(y.item() / 1.05, abs=1e-9)
        assert variance.item() == pytest.approx(1 - 1 / 1.05, abs=1e-9)
    assert ((variance > 0) & (variance < 1)).all()


@pytest.mark.parametrize("case", ["equal values", "zero values", "duplicate rows", "one graph"])
def test_degenerate_observations_stay_finite(case):
    x, y = graphs(12)
    if case == "equal values":
        y = torch.full_like(y, 0.9)
    elif case == "zero values":
        y = torch.zeros_like(y)
    elif case == "duplicate rows":
        x[6:] = x[:6]
    else:
        x[:] = x[:1]
    surrogate = fitted(x, y, settings=SurrogateSettings(hidden=8, layers=1, steps=20))
    new, _ = graphs(5, seed=4)
    mean, variance = surrogate.posterior(new)
    improvement = surrogate.expected_improvement(new, None, float(y.max()))
    assert torch.isfinite(torch.stack([mean, variance, improvement])).all()
    assert (variance > 0).all()
    assert (improvement >= 0).all()


def test_improvement_far_from_data_is_that_of_the_prior():
    x, y = graphs(8)
    settings = SurrogateSettings(hidden=8, layers=1, steps=3, length_scale=1e-3)
    surrogate = fitted(x, y, settings=settings)
    far = 50 * torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(0))
    improvement = surrogate.expected_improvement(far, None, 0.0)
    torch.testing.assert_close(improvement, torch.full((4,), 1 / math.sqrt(2 * math.pi)).double())
    hopeless = surrogate.expected_improvement(far, None, 1e3)
    assert torch.equal(hopeless, torch.zeros(4, dtype=torch.float64))


def test_when_training_stops():
    settings = SurrogateSettings(tolerance=0.1, averaging=0.5, min_steps=5)
    assert not converged([1.0] * 4, settings)
    assert converged([1.0] * 5, settings)
    # 0, then 1s: the averages are 0, 1/2, 3/4, 7/8, 15/16 and the gap at the fifth value is 1/16.
    assert converged([0.0, 1.0, 1.0, 1.0, 1.0], settings)
    # 0, 0, 0, 0, 1: the average is 1/2.
    assert not converged([0.0, 0.0, 0.0, 0.0, 1.0], settings)
    # 0, 1, 1, 1, 1 with tolerance just below the gap of 1/16.
    assert not converged([0.0, 1.0, 1.0, 1.0, 1.0], SurrogateSettings(tolerance=0.06))
    x, y = graphs(6)
    early = fitted(x, y, settings=SurrogateSettings(hidden=4, layers=1, tolerance=10.0))
    assert len(early.objective) == 5
    assert len(fitted(x, y).objective) == 5  # SMALL: all its steps


def test_inputs_that_do_not_fit_are_refused():
    x, y = graphs(4)
    with pytest.raises(EsnacError, match="one value for each"):
        fitted(x, y[:3])
    with pytest.raises(EsnacError, match="one value for each"):
        fitted(x[:0], y[:0])
    with pytest.raises(EsnacError, match="finite"):
        fitted(x, y * float("nan"))
    with pytest.raises(EsnacError, match="layers x features"):
        fitted(x[0], y)
    with pytest.raises(EsnacError, match="length from 1 to 10"):
        fitted(x, y, torch.tensor([1, 2, 3, 11]))
    with pytest.raises(TrainingError, match="not finite at step 0"):
        fitted(x * float("nan"), y)
