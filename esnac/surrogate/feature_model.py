"""A Gaussian process on a few features, by BoTorch with its own priors: a strong, simple model."""

from __future__ import annotations

import warnings

import torch
from botorch.exceptions.warnings import InputDataWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from esnac.runtime import seeded
from esnac.surrogate.gaussian_process import exact
from esnac.surrogate.prediction import CLAMP, Prediction


class FeatureModel:
    """`SingleTaskGP` on features (n x F, float64); fitted afresh every time."""

    afresh_every = 1
    size = 1
    warm = False

    def fit(self, x: Tensor, y: Tensor, seed: int, *, step: int = 0, afresh: bool = True) -> None:
        """Learns from `x` (n x F) with values `y` (n, float64), afresh at every step."""
        low = y.mean() - CLAMP * y.std() if len(y) > 1 else y.min()
        # A fit that fails is tried again from scales that BoTorch draws from the global generator.
        with warnings.catch_warnings(), exact(), seeded(seed, torch.device("cpu")):
            warnings.simplefilter("ignore", InputDataWarning)
            self._gp = SingleTaskGP(
                x,
                y.clamp_min(low)[:, None],
                input_transform=Normalize(x.shape[1]),
                outcome_transform=Standardize(1),
            )
            fit_gpytorch_mll(ExactMarginalLogLikelihood(self._gp.likelihood, self._gp))

    def predict(self, x: Tensor) -> Prediction:
        """The joint posterior at `x` (n x F), as an ensemble of one."""
        return self.at(x[None])

    @torch.no_grad()
    def at(self, points: Tensor) -> Prediction:
        """The same at points (1 x n x F)."""
        with exact():
            clean, noisy = (
                self._gp.posterior(points[0], observation_noise=noise).distribution  # type: ignore[union-attr]
                for noise in (False, True)
            )
            noise = (noisy.variance - clean.variance)[:1]
            return Prediction(clean.mean[None], clean.covariance_matrix[None], noise)

    def points(self, x: Tensor, member: int) -> Tensor:
        """Features are points as they are."""
        return x

    def process(self, member: int) -> tuple[SingleTaskGP, float, float]:
        """The process, which models the observations in their own units."""
        return self._gp, 0.0, 1.0
