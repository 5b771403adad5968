"""Differentiable quantisation: weights stay, the points they are rounded to learn.

Polino et al. (2018), section 4. Each weight becomes the nearest of its tensor's points, in the
scaled coordinates of its bucket; with p_j the points, q_i the weights so rounded, scale_i that of
the bucket,

    dL/dp_j = sum over the weights i nearest to p_j of scale_i dL/dq_i
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError, TrainingError
from esnac.quantization._base import WeightQuantizer
from esnac.quantization.attach import weight_quantizers
from esnac.quantization.codebook import Start, encode_points, scaled_values, start_points
from esnac.quantization.codes import Codes, Rows, row_length, spread
from esnac.settings import require

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class CodebookSettings:
    """`levels` points for a tensor, in the scaled coordinates of its `rows`."""

    method: ClassVar[str] = "codebook"

    levels: int = 4
    rows: Rows = 256
    #: Before training, k-means leaves 9 % of relative squared weight error on digits at 4 points,
    #: the uniform grid 26 % and quantiles 28 %.
    start: Start = "kmeans"
    #: Divide the points' gradient by sqrt(numel): as a sum over all weights it would ask for
    #: another learning rate in each tensor.
    normalise: bool = True

    def __post_init__(self) -> None:
        require(2 <= self.levels <= 256, "levels", "2 to 256", self.levels)
        row_length((1,), self.rows)
        require(self.start in get_args(Start), "start", " or ".join(get_args(Start)), self.start)

    @property
    def bits(self) -> float:
        return math.log2(self.levels)

    def build(self, weight: Tensor) -> CodebookWeight:
        return CodebookWeight(self, weight)


class CodebookWeight(WeightQuantizer):
    """Each weight becomes the nearest of the trained `points`, looked up in every forward pass.

    No gradient goes to the weight.
    """

    settings: CodebookSettings

    def __init__(self, settings: CodebookSettings, weight: Tensor) -> None:
        super().__init__(settings)
        values = scaled_values(weight, settings.rows)
        self.points = nn.Parameter(start_points(values, settings.levels, settings.start))

    def quantize(self, weight: Tensor) -> Tensor:
        # Sorted here, where gradients find their way back: an optimizer may move one past another.
        points = self.points.sort().values
        if self.settings.normalise and points.requires_grad:
            root = math.sqrt(weight.numel())
            points.register_hook(lambda gradient: gradient / root)
        found = encode_points(weight, points, self.settings.rows)
        shape = tuple(weight.shape)
        value = points[found.codes.long()] * spread(found.scale, shape, found.rows)
        if found.offset is not None:
            value = value + spread(found.offset, shape, found.rows)
        return value.to(weight.dtype)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        return encode_points(weight, self.points, self.settings.rows)

    @torch.no_grad()
    def sort(self) -> None:
        """Puts the points in order; the weights stay the same."""
        self.points.copy_(self.points.sort().values)


@dataclass(frozen=True)
class PointSettings:
    """How `fit_points` trains; the rate falls to 0 by half a cosine."""

    #: With Adam, from k-means points and recalibrated norms on digits at 2 bits: 1e-4 97.2 %,
    #: 3e-4 97.3 %, 1e-3 95.9 %.
    learning_rate: float = 3e-4
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "learning_rate", "greater than 0", rate)


def fit_points(
    network: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    steps: int,
    settings: PointSettings = PointSettings(),
) -> float:
    """Trains the points of all codebooks for `steps` batches; returns the mean loss.

    `loss(network, batch)` is a scalar: a distance to the float copy of the network, to any teacher
    or to labels. Everything else is frozen, but batch norms gather statistics, which are part of
    the result. Leaves the points sorted and the network in the mode it was in. Raises EsnacError
    without codebooks or with too few batches, TrainingError when the loss is not finite.
    """
    found = codebooks(network)
    points = [codebook.points for codebook in found.values()]
    rate = settings.learning_rate
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(points, lr=rate),
        "sgd": lambda: torch.optim.SGD(points, lr=rate, momentum=0.9, nesterov=True),
    }
    optimizer = kinds[settings.optimizer]()
    total, done = 0.0, 0
    with only_points(network), _training(network):
        for step, batch in enumerate(islice(batches, steps)):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            value = loss(network, batch)
            value.backward()
            optimizer.step()
            total, done = total + value.item(), done + 1
            if not math.isfinite(total):
                raise TrainingError(
                    f"The loss of the points is not finite at step {step}. Lower the learning rate."
                )
    if done < steps:
        raise EsnacError(f"{steps} steps need as many batches; there were {done}.")
    for codebook in found.values():
        codebook.sort()
    return total / max(steps, 1)


def codebooks(network: nn.Module) -> dict[str, CodebookWeight]:
    """The codebooks by the names of their weights. Raises EsnacError if there are none."""
    quantizers = weight_quantizers(network).items()
    found = {name: part for name, part in quantizers if isinstance(part, CodebookWeight)}
    if not found:
        raise EsnacError("No weight has a codebook: there are no points to train. Attach some.")
    return found


@contextmanager
def only_points(network: nn.Module) -> Iterator[None]:
    """Inside, the points of the codebooks are the only parameters that are trained."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    freeze_but_points(network)
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def freeze_but_points(network: nn.Module) -> None:
    """For a training loop that trains what requires a gradient: the points, and nothing else."""
    points = [codebook.points for codebook in codebooks(network).values()]
    network.requires_grad_(False)
    for parameter in points:
        parameter.requires_grad_(True)
        parameter.grad = None


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
