from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch.nn.functional import normalize

from esnac.errors import SettingsError, TrainingError
from esnac.settings import build
from esnac.surrogate.embedding import GraphEmbedding
from esnac.surrogate.ensemble import CLAMP, Ensemble, LearnedGP, Prediction
from esnac.surrogate.settings import EnsembleSettings

SMALL = EnsembleSettings(
    members=2,
    hidden=8,
    first_steps=8,
    next_steps=3,
    afresh_every=4,
    part=0.8,
    least_part=4,
    batch=100,
    most=1000,
    chunk=7,
)


def graphs(n, seed=0, nodes=10, features=6):
    """Graphs and values, of which one is far below the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, nodes, features, generator=generator)
    y = (x[..., 0].mean(1) + 0.3 * x[:, -1, 1]).double() - 2
    if n > 15:
        y[3] = -9.0
    return x, y


def fitted(x, y, seed=1, settings=SMALL, earlier=None):
    ensemble = Ensemble(x.shape[2], settings, earlier)
    ensemble.fit(x, y, seed, afresh=True)
    return ensemble


def before(n=9, nodes=13):
    """An earlier search's graphs, longer than those of this one, and their values."""
    x, y = graphs(n, seed=8, nodes=nodes)
    return x.numpy(), y.numpy() + 0.5


def textbook(gp, h, z, new):
    """Mean, covariance and noise at `new`: k = s exp(-|h - h'|^2 / (2 l^2)), constant mean."""
    with torch.no_grad():
        scale = gp.covar_module.outputscale.numpy()
        length = gp.covar_module.base_kernel.lengthscale.item()
        noise = gp.likelihood.noise.item()
        constant = gp.mean_module.constant.item()

    def kernel(a, b):
        return scale * np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * length**2))

    inverse = np.linalg.inv(kernel(h, h) + noise * np.eye(len(h)))
    cross = kernel(new, h)
    mean = constant + cross @ inverse @ (z - constant)
    return mean, kernel(new, new) - cross @ inverse @ cross.T, noise


def embedded(encoder, rows, mark):
    """Graphs (n x L x F) with a further feature `mark`, as points."""
    marked = np.pad(rows, ((0, 0), (0, 0), (0, 1)), constant_values=mark)
    with torch.no_grad():
        return encoder(torch.from_numpy(marked)).double().numpy()


# GPyTorch would solve iteratively from 800 on.
@pytest.mark.parametrize(("n", "warm"), [(20, False), (20, True), (900, False)])
def test_the_posterior_equals_the_textbook(n, warm):
    """On the members' own embeddings; earlier ones are those of graphs without any padding."""
    (x, y), (new, _) = graphs(n), graphs(9, seed=5)
    earlier = before() if warm else None
    ensemble = fitted(x, y, earlier=earlier)
    values = y.numpy() if earlier is None else np.concatenate([y.numpy(), earlier[1]])
    mean, std = values.mean(), values.std(ddof=1)
    z = np.maximum((values - mean) / std, -CLAMP)
    assert (z == -CLAMP).sum() == 1
    found = ensemble.predict(new)
    assert found.mean.dtype == torch.float64
    for number in range(2):
        gp, shift, factor = ensemble.process(number)
        assert (shift, factor) == (pytest.approx(mean), pytest.approx(std))
        h = ensemble.points(x, number).numpy()
        np.testing.assert_allclose(np.linalg.norm(h, axis=1), 1, atol=1e-6)
        if earlier is not None:
            encoder = ensemble._members[number].encoder
            np.testing.assert_allclose(h, embedded(encoder, x.numpy(), mark=0), atol=1e-6)
            h = np.concatenate([h, embedded(encoder, earlier[0], mark=1)])
        at = ensemble.points(new, number).numpy()
        expected, covariance, noise = textbook(gp, h, z, at)
        np.testing.assert_allclose(found.mean[number], mean + std * expected, atol=1e-5)
        np.testing.assert_allclose(found.covariance[number], std**2 * covariance, atol=1e-5)
        assert found.noise[number].item() == pytest.approx(std**2 * noise)
    assert not torch.allclose(found.mean[0], found.mean[1], atol=1e-3), "members differ"


def test_the_mixture_of_two_members():
    """Means 0 and 2, variances 1 and 3: mean 1, variance 2 within and 1 between."""
    covariance = torch.tensor([[[1.0]], [[3.0]]])
    mean, variance = Prediction(torch.tensor([[0.0], [2.0]]), covariance, torch.ones(2)).marginal()
    assert (mean.item(), variance.item()) == (1.0, 3.0)


def test_predictions_are_in_the_units_of_the_observations():
    (x, y), (new, _) = graphs(20), graphs(6, seed=5)
    one, other = fitted(x, y).predict(new), fitted(x, 100 + 10 * y).predict(new)
    torch.testing.assert_close(other.mean, 100 + 10 * one.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.covariance, 100 * one.covariance, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.noise, 100 * one.noise, atol=1e-6, rtol=0)


def test_the_seed_alone_decides():
    (x, y), (new, _) = graphs(12), graphs(5, seed=5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = fitted(x, y).predict(new)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, other = fitted(x, y).predict(new), fitted(x, y, seed=2).predict(new)
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.covariance, again.covariance)
    assert not torch.allclose(first.mean, other.mean, atol=1e-4)


def test_afresh_means_as_if_new():
    (x, y), (new, _) = graphs(12), graphs(5, seed=5)
    used = fitted(x, 2 * y, seed=7)
    used.fit(x[:5], y[:5], 8)
    used.fit(x, y, 1, afresh=True)
    assert torch.equal(used.predict(new).mean, fitted(x, y).predict(new).mean)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_the_steps_in_which_each_member_began_anew_are_all_that_counts(every):
    """So a resumed search replays no more than those."""
    settings = dataclasses.replace(SMALL, members=3, afresh_every=every, batch=6)
    (x, y), (new, _) = graphs(24), graphs(5, seed=5)
    straight, late = Ensemble(6, settings), Ensemble(6, settings)
    for step in range(8):
        straight.fit(x[: 3 * step + 3], y[: 3 * step + 3], step, step=step)
    for step in range(8 - every, 8):
        late.fit(x[: 3 * step + 3], y[: 3 * step + 3], step, step=step)
    assert torch.equal(straight.predict(new).mean, late.predict(new).mean)
    shorter = Ensemble(6, settings)
    for step in range(8 - every + 1, 8):
        shorter.fit(x[: 3 * step + 3], y[: 3 * step + 3], step, step=step)
    if every > 1:
        assert not torch.equal(straight.predict(new).mean, shorter.predict(new).mean)


def test_going_on_is_a_function_of_seeds_and_observations_in_order():
    (x, y), (new, _) = graphs(12), graphs(5, seed=5)

    def after(*parts):
        ensemble = fitted(x[:6], y[:6])
        for seed, n in parts:
            ensemble.fit(x[:n], y[:n], seed)
        return ensemble.predict(new).mean

    straight = after((2, 9), (3, 12))
    assert torch.equal(straight, after((2, 9), (3, 12)))
    for other in (after((3, 12)), after((4, 9), (3, 12)), fitted(x, y, seed=3).predict(new).mean):
        assert not torch.allclose(straight, other, atol=1e-5)


def test_members_go_on_by_fewer_steps():
    x, y = graphs(12)
    ensemble = fitted(x, y)
    assert [member.trained for member in ensemble._members] == [8, 8]
    ensemble.fit(x, y, 2, step=1)
    assert [member.trained for member in ensemble._members] == [11, 11]


def test_the_objective_equals_gpytorchs():
    (x, y), gp = graphs(12), LearnedGP(torch.zeros(1, 6).double(), torch.zeros(1).double())
    gp.covar_module.outputscale, gp.likelihood.noise = 1.7, 0.02
    gp.mean_module.constant = 0.3
    h = normalize(x.mean(1), dim=1).double().requires_grad_()
    theirs = ExactMarginalLogLikelihood(gp.likelihood, gp.train())(gp.forward(h), y)
    parameters = [h, *gp.parameters()]
    expected = torch.autograd.grad(theirs, parameters)
    ours = gp.log_posterior(h, y)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for gradient, other in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10)


def test_many_observations_train_in_batches_that_every_step_draws(monkeypatch):
    x, y = graphs(30)
    seen = []
    forward = GraphEmbedding.forward

    def recorded(self, rows, lengths=None):
        seen.append(tuple(int((x == row).all((1, 2)).nonzero()) for row in rows))
        return forward(self, rows, lengths)

    monkeypatch.setattr(GraphEmbedding, "forward", recorded)
    fitted(x, y, settings=dataclasses.replace(SMALL, members=1, batch=10, chunk=30))
    batches = seen[: SMALL.first_steps]
    assert seen[SMALL.first_steps :] == [tuple(range(30))], "predictions rest on all"
    assert all(len(set(batch)) == 10 for batch in batches)
    assert len(set(batches)) == len(batches)
    assert 20 < len(set().union(*batches)) <= 24, "of the member's share"
    seen.clear()
    fitted(x, y, settings=dataclasses.replace(SMALL, members=1, batch=24, chunk=30))
    assert len(set(seen[: SMALL.first_steps])) == 1


def test_an_ensemble_without_members_starts_them():
    (x, y), (new, _) = graphs(12), graphs(5, seed=5)
    ensemble = Ensemble(6, SMALL)
    ensemble.fit(x, y, 1)
    assert torch.equal(ensemble.predict(new).mean, fitted(x, y).predict(new).mean)


def test_past_the_most_the_best_and_a_random_part_of_the_others_remain():
    x, y = graphs(40)
    ensemble = fitted(x, y, settings=dataclasses.replace(SMALL, most=10))
    gp, shift, factor = ensemble.process(0)
    used = shift + factor * gp.train_targets
    assert len(used) == len(gp.train_inputs[0]) == 10
    best = y.sort(descending=True).values
    rows = [int((y - value).abs().argmin()) for value in used]
    assert len(set(rows)) == 10
    assert rows == sorted(rows), "in the order they came"
    assert set(best[:5].tolist()) <= set(y[rows].tolist())
    rest = y[rows][y[rows] < best[4]]
    assert rest.min() < best[10], "not just the ten best"
    torch.testing.assert_close(gp.train_inputs[0], ensemble.points(x[rows], 0), atol=1e-6, rtol=0)
    other = fitted(x, y, seed=2, settings=dataclasses.replace(SMALL, most=10))
    targets = other.process(0)
    assert not torch.allclose(targets[1] + targets[2] * targets[0].train_targets, used)


def test_it_ranks_unseen_graphs():
    (x, y), (new, truth) = graphs(60), graphs(100, seed=7)
    truth[3] = (new[3, :, 0].mean() + 0.3 * new[3, -1, 1]) - 2
    settings = dataclasses.replace(SMALL, first_steps=60, hidden=16, learning_rate=1e-2)
    ensemble = fitted(x, y, settings=settings)
    mean, variance = ensemble.predict(new).marginal()
    ranks = torch.stack([mean, truth]).argsort(dim=1).argsort(dim=1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.7
    noise = ensemble.predict(new).noise.mean()
    inside = (mean - truth).abs() < 1.6449 * (variance + noise).sqrt()
    assert inside.double().mean() > 0.7


def test_an_earlier_search_is_known_before_the_first_observation():
    x, y = graphs(60)
    known = x.numpy(), y.numpy()
    settings = dataclasses.replace(SMALL, first_steps=60, hidden=16, learning_rate=1e-2)
    ensemble = Ensemble(6, settings, known)
    assert ensemble.warm
    assert not Ensemble(6, settings).warm
    ensemble.fit(x[:0], y[:0], 1, afresh=True)
    new, truth = graphs(100, seed=7)
    mean, _ = ensemble.predict(new).marginal()
    ranks = torch.stack([mean, truth]).argsort(dim=1).argsort(dim=1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.5
    # Without observations of its own it predicts as of the other search.
    member = ensemble._members[0]
    h = torch.from_numpy(embedded(member.encoder, new.numpy(), mark=1))
    torch.testing.assert_close(ensemble.points(new, 0), h)
    before_any, spread = ensemble.predict(new[:1]).marginal()
    assert math.isfinite(before_any.item())
    assert spread.item() > 0


@pytest.mark.parametrize("case", ["one", "two", "equal values", "equal rows"])
def test_degenerate_observations_stay_finite(case):
    x, y = graphs({"one": 1, "two": 2}.get(case, 12))
    if case == "equal values":
        y = torch.full_like(y, -0.5)
    elif case == "equal rows":
        x[:] = x[:1]
    found = fitted(x, y).predict(graphs(5, seed=4)[0])
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.covariance).all()
    assert (found.covariance.diagonal(dim1=1, dim2=2) > 0).all()
    assert (found.noise > 0).all()


def test_features_that_are_not_finite_are_told():
    x, y = graphs(6)
    with pytest.raises(TrainingError, match="not finite at step 0"):
        fitted(x * float("nan"), y)


@pytest.mark.parametrize(
    "key", ["members", "hidden", "first_steps", "afresh_every", "most", "batch"]
)
def test_a_setting_out_of_range_is_named(key):
    with pytest.raises(SettingsError, match=key):
        build(EnsembleSettings, {key: 0})
