"""Exact Gaussian process on embeddings, with fixed scales, and its leave-one-out objective.

k(h, h') = exp(-|h - h'|^2 / (2 l^2)), prior mean 0, y = f + noise. Everything is float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from botorch.models.gpytorch import GPyTorchModel
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import LeaveOneOutPseudoLikelihood
from gpytorch.models import ExactGP
from gpytorch.settings import fast_computations
from gpytorch.utils.warnings import NumericalWarning
from torch import Tensor


class EmbeddingGP(ExactGP, GPyTorchModel):
    """A BoTorch model of f on embeddings `h` (n x d) with observations `y` (n), both float64.

    `noise` is a variance. Nothing in it is trained: what learns is the embedding.
    """

    _num_outputs = 1

    def __init__(self, h: Tensor, y: Tensor, length_scale: float, noise: float) -> None:
        super().__init__(h, y, GaussianLikelihood())
        self.mean_module = ZeroMean()
        self.covar_module = RBFKernel()
        self.to(h)
        # The default constraint keeps the noise above 1e-4, which the caller may want to go below.
        self.likelihood.noise_covar.raw_noise_constraint.lower_bound.fill_(0.0)
        self.likelihood.noise = h.new_tensor(noise)  # a plain number would be rounded to float32
        self.covar_module.lengthscale = h.new_tensor(length_scale)
        self.requires_grad_(False)

    def forward(self, h: Tensor) -> MultivariateNormal:
        """The prior of f at `h` (... x n x d)."""
        return MultivariateNormal(self.mean_module(h), self.covar_module(h))


def leave_one_out(gp: EmbeddingGP, h: Tensor, y: Tensor) -> Tensor:
    """Mean over i of log p(y_i | the other observations), in nats; larger is better.

    Equals -log(var_i)/2 - (y_i - mu_i)^2 / (2 var_i) - log(2 pi)/2 with K including the noise,
    mu_i = y_i - [K^-1 y]_i / [K^-1]_ii and var_i = 1 / [K^-1]_ii (Rasmussen and Williams 2006,
    eq. 5.10-5.12). Differentiable in `h` (n x d).
    """
    return LeaveOneOutPseudoLikelihood(gp.likelihood, gp)(gp.forward(h), y)


@contextmanager
def exact() -> Iterator[None]:
    """Context in which GPyTorch solves by Cholesky for any n (from n = 800 it would iterate).

    Graphs that are alike give nearly singular matrices; what GPyTorch then does (jitter, variances
    of -1e-12 set to 0) is of no interest to users, so its warnings of it are silent.
    """
    exactly = fast_computations(covar_root_decomposition=False, log_prob=False, solves=False)
    with exactly, warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        yield
