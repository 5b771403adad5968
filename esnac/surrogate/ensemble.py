"""The default engine's model of accuracy: an ensemble of small deep kernels with learned scales.

Each member embeds graphs by a BiLSTM (one layer, unit-length mean over layers) and puts a Gaussian
process with RBF kernel on the embedding. Unlike the published kernel it learns its scales too:
constant mean, output scale, length scale and noise, under weak priors that keep a deep kernel from
explaining noise (Ober, Rasmussen, van der Wilk 2021). Members differ in their random weights and in
the random part of the observations that trains the weights; predictions rest on all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from botorch.models.gpytorch import GPyTorchModel
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.models import ExactGP
from gpytorch.priors import LogNormalPrior
from gpytorch.settings import debug, fast_pred_var
from torch import Tensor
from torch.nn.functional import pad

from esnac.errors import TrainingError
from esnac.runtime import torch_generator
from esnac.surrogate.embedding import GraphEmbedding
from esnac.surrogate.gaussian_process import exact
from esnac.surrogate.prediction import CLAMP, Prediction
from esnac.surrogate.settings import EnsembleSettings


class LearnedGP(ExactGP, GPyTorchModel):
    """A BoTorch model on embeddings (n x d, float64) with learned mean, scales and noise."""

    _num_outputs = 1

    def __init__(self, h: Tensor, y: Tensor) -> None:
        # Standardised observations: noise of a tenth to a half of their spread is usual.
        noise = GaussianLikelihood(
            noise_prior=LogNormalPrior(-2.5, 1.0), noise_constraint=GreaterThan(1e-4)
        )
        super().__init__(h, y, noise)
        self.mean_module = ConstantMean()
        self.covar_module = ScaleKernel(
            RBFKernel(lengthscale_prior=LogNormalPrior(-1.0, 0.7)),
            outputscale_prior=LogNormalPrior(0.0, 0.7),
        )
        self.double()
        self.likelihood.noise = 0.1
        self.covar_module.outputscale = 1.0
        self.covar_module.base_kernel.lengthscale = 0.4

    def forward(self, h: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(h), self.covar_module(h))

    def log_posterior(self, h: Tensor, z: Tensor) -> Tensor:
        """Log marginal likelihood of `z` (n) at `h` (n x d) plus log priors, per observation.

        Rasmussen and Williams 2006, eq. 2.30. The value of GPyTorch's ExactMarginalLogLikelihood
        without its overhead, which costs more than the algebra at these sizes.
        """
        noise = self.likelihood.noise.expand(len(z)).diag()
        factor = torch.linalg.cholesky(self.covar_module(h).to_dense() + noise)
        residual = (z - self.mean_module(h))[:, None]
        white = torch.linalg.solve_triangular(factor, residual, upper=False)
        total = -0.5 * white.square().sum() - factor.diagonal().log().sum()
        for _, module, prior, value, _ in self.named_priors():  # type: ignore[operator]
            total = total + prior.log_prob(value(module)).sum()
        return total / len(z) - 0.5 * math.log(2 * math.pi)


@dataclass
class Member:
    """One encoder with its process; `trained` counts its steps of Adam."""

    encoder: GraphEmbedding
    gp: LearnedGP
    trained: int = 0


class Ensemble:
    """Members that are trained further as observations come in.

    Each starts anew every `afresh_every` steps of the search, one after the other, and goes on from
    where it is in between. So an ensemble is a function of the seeds, steps and observations that
    it has been given since all of its members started anew.
    """

    def __init__(
        self,
        features: int,
        settings: EnsembleSettings,
        earlier: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """`earlier`: graphs (n x L' x F) and values of another search, to learn from as well.

        A further feature, 1 for those, lets the embedding tell the two searches apart as far as the
        observations ask for it.
        """
        self._settings = settings
        self._earlier = None
        self._features = features
        if earlier is not None:
            rows, values = torch.from_numpy(earlier[0]), torch.from_numpy(earlier[1])
            rows, values = rows[-settings.most :], values[-settings.most :]
            self._earlier = pad(rows, (0, 1), value=1.0), values
            self._features += 1
        self._members: list[Member] = []
        self._mean = self._scale = 0.0
        #: Whether all that it has learnt is of the other search.
        self._only_earlier = False

    @property
    def afresh_every(self) -> int:
        return self._settings.afresh_every

    @property
    def warm(self) -> bool:
        """Whether it knows an earlier search."""
        return self._earlier is not None

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        seed: int,
        *,
        step: int = 0,
        afresh: bool = False,
    ) -> None:
        """Learns from graphs `x` (n x L x F, float32) with values `y` (n, finite, float64).

        All members start anew where `afresh`, else those whose turn it is in `step` of the search.
        Past `settings.most` observations the best half of that number and a random half of the rest
        are used. Raises TrainingError when an embedding is not finite.
        """
        settings = self._settings
        if afresh:
            self._members = []
        generators = [torch_generator(seed, "member", number) for number in range(settings.members)]
        self._only_earlier = self.warm and not len(y)
        x, y = self._limited(x, y, generators[0])
        x, y, lengths = self._with_earlier(x, y)
        self._mean = float(y.mean())
        self._scale = float(y.std()) if len(y) > 1 and y.std() > 1e-9 else 1.0
        z = ((y - self._mean) / self._scale).clamp_min(-CLAMP)
        for number, generator in enumerate(generators):
            every = settings.afresh_every
            new = len(self._members) == number
            if new or step % every == number * every // settings.members:
                encoder = GraphEmbedding(self._features, settings.hidden, 1, generator)
                empty = torch.zeros(1, 2 * settings.hidden, dtype=torch.float64)
                member = Member(encoder, LearnedGP(empty, empty[:, 0]))
                self._members[number : number + 1] = [member]
            member = self._members[number]
            steps = settings.next_steps if member.trained else settings.first_steps
            size = min(len(z), max(settings.least_part, int(settings.part * len(z))))
            part = torch.randperm(len(z), generator=generator)[:size]
            some = None if lengths is None else lengths[part]
            _train(member, x[part], some, z[part], steps, settings, generator)
            with torch.no_grad():
                h = self._embed(member, x, lengths)
            member.gp.set_train_data(h, z, strict=False)  # type: ignore[operator]
            member.gp.eval()

    def predict(self, x: Tensor) -> Prediction:
        """The joint posterior at graphs `x` (n x L x F)."""
        return self.at(torch.stack([self.points(x, member) for member in range(self.size)]))

    @torch.no_grad()
    def at(self, points: Tensor) -> Prediction:
        """The joint posterior at the `points` of all members (M x n x d)."""
        means, covariances, noises = [], [], []
        # With debug it would warn of graphs that are among the observations. Within `exact` fast
        # variances are by Cholesky too, but what does not depend on the points is done once a fit.
        with exact(), debug(False), fast_pred_var():
            for member, h in zip(self._members, points, strict=True):
                posterior = member.gp(h)
                means.append(self._mean + self._scale * posterior.mean)
                covariances.append(self._scale**2 * posterior.covariance_matrix)
                noises.append(self._scale**2 * member.gp.likelihood.noise[0])
        return Prediction(torch.stack(means), torch.stack(covariances), torch.stack(noises))

    @property
    def size(self) -> int:
        """The number of members."""
        return self._settings.members

    @torch.no_grad()
    def points(self, x: Tensor, member: int) -> Tensor:
        """Graphs (n x L x F) as points (n x d, float64) of one member's process."""
        return self._embed(self._members[member], self._marked(x))

    def process(self, member: int) -> tuple[LearnedGP, float, float]:
        """One member's process g, and m and s of what it models: observation = m + s g."""
        return self._members[member].gp, self._mean, self._scale

    def _marked(self, x: Tensor) -> Tensor:
        """Graphs of this search with the feature that tells them from earlier ones.

        While there are only earlier ones that feature says nothing yet, so it is as theirs.
        """
        return x if self._earlier is None else pad(x, (0, 1), value=float(self._only_earlier))

    def _with_earlier(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Observations together with the earlier ones, padded to one length; their lengths."""
        if self._earlier is None:
            return x, y, None
        x, (before, values) = self._marked(x), self._earlier
        lengths = torch.tensor([x.shape[1]] * len(x) + [before.shape[1]] * len(before))
        longest = max(x.shape[1], before.shape[1])
        both = [pad(rows, (0, 0, 0, longest - rows.shape[1])) for rows in (x, before)]
        return torch.cat(both), torch.cat([y, values]), lengths

    def _embed(self, member: Member, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        size = self._settings.chunk
        parts = []
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            parts.append(member.encoder(x[rows], None if lengths is None else lengths[rows]))
        return torch.cat(parts).double()

    def _limited(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        most = self._settings.most
        if len(y) <= most:
            return x, y
        order = y.argsort(descending=True, stable=True)
        best, rest = order[: most // 2], order[most // 2 :]
        some = rest[torch.randperm(len(rest), generator=generator)[: most - most // 2]]
        rows = torch.cat([best, some]).sort().values
        return x[rows], y[rows]


def _train(
    member: Member,
    x: Tensor,
    lengths: Tensor | None,
    z: Tensor,
    steps: int,
    settings: EnsembleSettings,
    generator: torch.Generator,
) -> None:
    """Adam on `log_posterior`; maximum a posteriori for the scales.

    With more than `settings.batch` observations every step draws that many, and the priors weigh
    as against so many.
    """
    encoder, gp = member.encoder, member.gp
    gp.train()
    optimizer = torch.optim.Adam(
        [
            {"params": encoder.parameters(), "lr": settings.learning_rate},
            {"params": gp.parameters(), "lr": settings.scale_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    with torch.enable_grad():
        for step in range(steps):
            rows: Tensor | slice = slice(None)
            if len(z) > settings.batch:
                rows = torch.randperm(len(z), generator=generator)[: settings.batch]
            optimizer.zero_grad()
            h = encoder(x[rows], None if lengths is None else lengths[rows]).double()
            if not torch.isfinite(h).all():
                raise TrainingError(f"The surrogate's embedding is not finite at step {step}.")
            (-gp.log_posterior(h, z[rows])).backward()
            optimizer.step()
    member.trained += steps
