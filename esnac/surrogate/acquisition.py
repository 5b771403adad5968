"""Expected improvement where part of the value is known."""

from __future__ import annotations

from torch import Tensor
from torch.special import log_ndtr


def expected_improvement_of_product(
    weight: Tensor, mean: Tensor, variance: Tensor, best: Tensor | float
) -> Tensor:
    """E[max(w e^z - best, 0)] for z ~ N(mean, variance) and a known w.

    With s^2 = variance and d = (mean - log(best / w)) / s it is
    w e^(mean + s^2 / 2) Phi(d + s) - best Phi(d). All tensors broadcast (float64); `best` > 0, and
    0 where w is not positive.
    """
    s = variance.clamp_min(1e-12).sqrt()
    w = weight.clamp_min(1e-12)
    d = (mean - (best / w).log()) / s
    gain = (w.log() + mean + s**2 / 2 + log_ndtr(d + s)).exp() - best * log_ndtr(d).exp()
    return gain.clamp_min(0).where(weight > 0, 0)
