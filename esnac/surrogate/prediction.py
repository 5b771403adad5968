"""What a model of accuracy says of students, and how far it listens to bad ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: Observations are standardised, and those further below the mean than this are moved up to it: how
#: bad a hopeless student is does not matter, and would stretch the scale of the good ones.
CLAMP = 3.0


@dataclass(frozen=True)
class Prediction:
    """Joint posterior of the members (M) at n points, in the units of the observations.

    `mean` (M x n) and `covariance` (M x n x n) are of the noise-free value, `noise` (M) is the
    variance of an observation around it.
    """

    mean: Tensor
    covariance: Tensor
    noise: Tensor

    def marginal(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (n each) of the members' even mixture, without noise."""
        variance = self.covariance.diagonal(dim1=1, dim2=2)
        mean = self.mean.mean(0)
        return mean, (variance + self.mean**2).mean(0) - mean**2
