from __future__ import annotations

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.optim.utils import sample_all_priors

from esnac.surrogate import feature_model
from esnac.surrogate.feature_model import FeatureModel


def observations(n, seed=0):
    """Four features, of which the first two matter and the last is the same for all."""
    generator = torch.Generator().manual_seed(seed)
    x = 5 * torch.rand(n, 4, generator=generator, dtype=torch.float64)
    x[:, 3] = 2.0
    noise = 0.02 * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, 0.3 * torch.sin(x[:, 0]) - 0.1 * x[:, 1] - 1 + noise


def fitted(x, y):
    model = FeatureModel()
    model.fit(x, y, 0)
    return model


def kernel(gp, a, b):
    """The process's own kernel and scales, on features scaled to those of the data."""
    a, b = gp.input_transform(a), gp.input_transform(b)
    with torch.no_grad():
        return gp.covar_module(a, b).to_dense()


def test_the_posterior_equals_the_textbook():
    """In units of the observations, and with the variance of one observation beside it.

    What lies more than 3 standard deviations below the mean is moved up to there.
    """
    x, y = observations(25)
    y[4] = -4.0
    new, _ = observations(7, seed=5)
    model = fitted(x, y)
    gp, shift, factor = model.process(0)
    assert (shift, factor) == (0.0, 1.0)
    y = y.clamp_min(y.mean() - 3 * y.std())
    assert y[4] > -4
    z = (y - y.mean()) / y.std()
    noise, constant = (v.detach() for v in (gp.likelihood.noise[0], gp.mean_module.constant))
    gp.eval()
    gram = kernel(gp, x, x) + noise * torch.eye(25, dtype=torch.float64)
    cross = kernel(gp, new, x)
    mean = constant + cross @ torch.linalg.solve(gram, z - constant)
    covariance = kernel(gp, new, new) - cross @ torch.linalg.solve(gram, cross.T)
    found = model.predict(new)
    assert found.mean.shape == (1, 7)
    torch.testing.assert_close(found.mean[0], y.mean() + y.std() * mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.covariance[0], y.var() * covariance, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.noise, (y.var() * noise)[None], atol=1e-7, rtol=1e-4)


def test_it_learns_what_matters():
    model = fitted(*observations(60))
    new, truth = observations(200, seed=3)
    mean, variance = model.predict(new).marginal()
    assert (mean - truth).square().mean().sqrt() < 0.05
    assert truth.std() > 0.2
    noise = model.predict(new).noise
    inside = (mean - truth).abs() < 1.6449 * (variance + noise).sqrt()
    assert 0.75 < inside.double().mean() <= 1


def test_predictions_are_in_the_units_of_the_observations():
    x, y = observations(30)
    new, _ = observations(5, seed=1)
    one, other = fitted(x, y).predict(new), fitted(x, 100 + 10 * y).predict(new)
    torch.testing.assert_close(other.mean, 100 + 10 * one.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(other.covariance, 100 * one.covariance, atol=1e-4, rtol=0)
    torch.testing.assert_close(other.noise, 100 * one.noise, atol=1e-4, rtol=0)


def test_the_global_random_state_is_not_touched():
    x, y = observations(20)
    new, _ = observations(5, seed=1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = fitted(x, y).predict(new).mean
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(fitted(x, y).predict(new).mean, first)


def test_a_fit_that_is_tried_again_is_reproducible(monkeypatch):
    """BoTorch draws the scales of a second attempt from the global generator."""
    drawn = []

    def again(mll):
        sample_all_priors(mll.model)
        drawn.append(mll.model.covar_module.lengthscale.detach().clone())
        return fit_gpytorch_mll(mll)

    monkeypatch.setattr(feature_model, "fit_gpytorch_mll", again)
    for seed in (3, 4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fitted(*observations(20))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("case", ["one", "two", "equal values", "equal rows"])
def test_degenerate_observations_stay_finite(case):
    x, y = observations({"one": 1, "two": 2}.get(case, 12))
    if case == "equal values":
        y = torch.full_like(y, -0.5)
    elif case == "equal rows":
        x[:] = x[:1]
    found = fitted(x, y).predict(observations(5, seed=1)[0])
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.covariance).all()
    assert (found.covariance.diagonal(dim1=1, dim2=2) >= 0).all()
    assert found.noise.shape == (1,)
    assert (found.noise > 0).all()
