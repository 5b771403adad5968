"""Fit the embedding to observed architectures and predict others: the `paper` engine.

The Gaussian process never sees the wide inputs: graphs are embedded once (float32), the process
works on the embeddings (float64).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from botorch.acquisition.analytic import ExpectedImprovement
from botorch.exceptions.warnings import NumericsWarning
from torch import Tensor

from esnac.errors import EsnacError, TrainingError
from esnac.surrogate.embedding import GraphEmbedding
from esnac.surrogate.gaussian_process import EmbeddingGP, exact, leave_one_out
from esnac.surrogate.settings import SurrogateSettings


@dataclass(frozen=True)
class Surrogate:
    """A fitted embedding and the Gaussian process on the observed architectures.

    `objective` has the leave-one-out value before each step of training.
    """

    embedding: GraphEmbedding
    gp: EmbeddingGP
    objective: tuple[float, ...]
    chunk: int = 250

    @torch.no_grad()
    def embed(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (n x 2 hidden, float64, unit rows) of `x` (n x L x F, float32)."""
        _check_graphs(x, lengths)
        parts = []
        for start in range(0, len(x), self.chunk):
            rows = slice(start, start + self.chunk)
            parts.append(self.embedding(x[rows], None if lengths is None else lengths[rows]))
        return torch.cat(parts).double()

    @torch.no_grad()
    def posterior(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance (n each, float64) of f, without noise, at `x` (n x L x F)."""
        h = self.embed(x, lengths)
        with exact():
            # One point a batch: marginals, not an n x n covariance.
            chunks = [self.gp.posterior(part[:, None]) for part in h.split(self.chunk)]
            mean = torch.cat([chunk.mean[:, 0, 0] for chunk in chunks])
            return mean, torch.cat([chunk.variance[:, 0, 0] for chunk in chunks])

    @torch.no_grad()
    def expected_improvement(
        self, x: Tensor, lengths: Tensor | None, best_f: float | Tensor
    ) -> Tensor:
        """E[max(f(x) - best_f, 0)] under the posterior of f (n, float64, never negative or NaN).

        It underflows to 0 where an improvement is hopeless.
        """
        h = self.embed(x, lengths)
        with warnings.catch_warnings(), exact():
            # BoTorch recommends its logarithm; the published method ranks by the plain value.
            warnings.simplefilter("ignore", NumericsWarning)
            acquisition = ExpectedImprovement(self.gp, torch.as_tensor(best_f).to(h))
            values = [acquisition(part[:, None]) for part in h.split(self.chunk)]
        return torch.cat(values).clamp_min(0)


def fit(
    x: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    settings: SurrogateSettings,
    generator: torch.Generator,
) -> Surrogate:
    """Train a fresh embedding on `x` (n x L x F, float32) with values `y` (n); n >= 1.

    Adam maximises the mean leave-one-out log-likelihood (see `leave_one_out`), at most
    `settings.steps` steps. `generator` (CPU) decides the initial weights; the global random state
    is not touched. Raises EsnacError for inputs that do not fit together or values that are not
    finite, and TrainingError when an embedding is not finite (features that are not).
    """
    _check_observations(x, y, lengths)
    y = y.detach().to(x.device, torch.float64)
    embedding = GraphEmbedding(x.shape[2], settings.hidden, settings.layers, generator).to(x.device)
    h = torch.zeros(len(x), 2 * settings.hidden, dtype=torch.float64, device=x.device)
    gp = EmbeddingGP(h, y, settings.length_scale, settings.noise)
    with exact(), torch.enable_grad():
        objective = _train(embedding, gp, x, y, lengths, settings)
    embedding.eval().requires_grad_(False)
    surrogate = Surrogate(embedding, gp.eval(), objective, settings.chunk)
    gp.set_train_data(surrogate.embed(x, lengths), y)  # type: ignore[operator]
    return surrogate


def _train(
    embedding: GraphEmbedding,
    gp: EmbeddingGP,
    x: Tensor,
    y: Tensor,
    lengths: Tensor | None,
    settings: SurrogateSettings,
) -> tuple[float, ...]:
    optimizer = torch.optim.Adam(
        embedding.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    values: list[float] = []
    while len(values) < settings.steps and not converged(values, settings):
        optimizer.zero_grad()
        h = embedding(x, lengths).double()
        if not torch.isfinite(h).all():
            raise TrainingError(f"The surrogate's embedding is not finite at step {len(values)}.")
        objective = leave_one_out(gp, h, y)
        (-objective).backward()
        values.append(objective.item())
        optimizer.step()
    return tuple(values)


def converged(values: list[float], settings: SurrogateSettings) -> bool:
    """Whether the moving average of the objective has come within the tolerance of its last value.

    The average starts at the first value; `averaging` is the weight of the newest one.
    """
    if len(values) < max(settings.min_steps, 1):
        return False
    average = values[0]
    for value in values[1:]:
        average += settings.averaging * (value - average)
    return abs(average - values[-1]) < settings.tolerance


def _check_observations(x: Tensor, y: Tensor, lengths: Tensor | None) -> None:
    _check_graphs(x, lengths)
    if len(x) == 0 or y.shape != x.shape[:1]:
        raise EsnacError(
            f"The surrogate needs one value for each of one or more graphs; got {len(x)} graphs "
            f"and values of shape {tuple(y.shape)}."
        )
    if not torch.isfinite(y).all():
        raise EsnacError("The surrogate needs finite values; leave failed evaluations out.")


def _check_graphs(x: Tensor, lengths: Tensor | None) -> None:
    if x.dim() != 3:
        raise EsnacError(
            f"Encoded graphs are graphs x layers x features; got shape {tuple(x.shape)}."
        )
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or not ((lengths >= 1) & (lengths <= x.shape[1])).all():
        raise EsnacError(f"Each of {len(x)} graphs needs a length from 1 to {x.shape[1]}.")
