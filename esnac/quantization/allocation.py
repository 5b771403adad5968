"""Which tensor gets how many bits or points, by how much the loss feels it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.graphs.masks import effective_weights
from esnac.quantization._base import WeightSettings
from esnac.quantization.attach import Plan
from esnac.quantization.lsq import LSQWeightSettings
from esnac.quantization.points import CodebookSettings
from esnac.quantization.uniform import MOST_LEVELS
from esnac.runtime import evaluating

Batch = TypeVar("Batch")


def gradient_norms(
    network: nn.Module,
    names: Sequence[str],
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
) -> dict[str, float]:
    """The mean 2-norm, over the batches, of the gradient of `loss` by each named parameter.

    Measured in eval mode; the network is left as it was.
    """
    known = dict(network.named_parameters())
    if missing := [name for name in names if name not in known]:
        raise EsnacError(f"No parameter {missing[0]!r} to take a gradient by.")
    parameters = [known[name] for name in names]
    sums, count = torch.zeros(len(names), dtype=torch.float64), 0
    with evaluating(network):
        for batch in batches:
            gradients = torch.autograd.grad(loss(network, batch), parameters)
            sums += torch.stack([gradient.norm().double().cpu() for gradient in gradients])
            count += 1
    if not count:
        raise EsnacError("No batches to measure gradients on.")
    return dict(zip(names, (sums / count).tolist(), strict=True))


def allocate_bits(
    norms: Mapping[str, float],
    numels: Mapping[str, int],
    budget: int,
    least: int = 1,
    most: int = 8,
) -> dict[str, int]:
    """Bits per weight of each tensor, `least` to `most`, of at most `budget` for all weights.

    `norms` are of gradients by weights in units of their spread: to first order, rounding with b
    bits then adds noise to the loss of variance (up to a factor)

        (norm / (2^b - 1))^2

    so bit by bit goes to the tensor where it takes away most of this per bit stored. Raises
    EsnacError where the least bits are too much.
    """
    _check(norms)
    bits = dict.fromkeys(norms, least)
    weights = sum(numels[name] for name in norms)
    left = budget - least * weights
    if left < 0:
        raise EsnacError(
            f"{budget} bits are too few for {weights} weights; allow at least {least} for each."
        )

    def gain(name: str) -> tuple[float, int, str]:
        b = bits[name]
        noise = (2**b - 1) ** -2 - (2 ** (b + 1) - 1) ** -2
        return noise * norms[name] ** 2 / max(numels[name], 1), -b, name

    while takers := [name for name in bits if bits[name] < most and numels[name] <= left]:
        best = max(takers, key=gain)
        bits[best] += 1
        left -= numels[best]
    return bits


def allocate_points(norms: Mapping[str, float], points: int, least: int = 2) -> dict[str, int]:
    """Points of each tensor's codebook, `points` in the mean, by the rule of Polino et al. (2018).

    Each tensor keeps half of its points, and at least `least`; the others are dealt in proportion
    to the norms. The number of points is conserved, not that of stored bits.
    """
    _check(norms)
    kept = max(points // 2, least)
    if points < kept:
        raise EsnacError(f"A codebook has at least {least} points; got {points} in the mean.")
    dealt = _deal((points - kept) * len(norms), norms)
    return {name: kept + dealt[name] for name in norms}


def reallocate(plan: Plan, network: nn.Module, norms: Mapping[str, float], bits: float) -> Plan:
    """`plan` with the tensors of `bits` bits given more or fewer, by the `norms` of the gradient.

    They take no more bits together than before (trained points: no more points, and at most 256
    each). Raises EsnacError unless there are two to share bits.
    """
    weights = effective_weights(network)
    chosen = {name: s for name, s in plan.weights.items() if s.bits == bits and name in norms}
    if len(chosen) < 2:
        raise EsnacError(
            f"Bits by gradients need two weights of {bits} bits; there is no such pair."
        )
    points = {name: s for name, s in chosen.items() if isinstance(s, CodebookSettings)}
    others = {name: s for name, s in chosen.items() if name not in points}
    numels = {name: weights[name].numel() for name in chosen}
    changed: dict[str, WeightSettings] = {}
    if points:
        levels = next(iter(points.values())).levels
        dealt = allocate_points({name: norms[name] for name in points}, levels)
        found = {name: min(count, MOST_LEVELS) for name, count in dealt.items()}
        changed |= {name: replace(s, levels=found[name]) for name, s in points.items()}
    if others:
        felt = {name: norms[name] * float(weights[name].std(correction=0)) for name in others}
        budget = int(bits * sum(numels[name] for name in others))
        least = 2 if any(isinstance(s, LSQWeightSettings) for s in others.values()) else 1
        given = allocate_bits(felt, numels, budget, least)
        changed |= {
            name: replace(s, bits=given[name])  # type: ignore[type-var]
            for name, s in others.items()
        }
    return Plan({**plan.weights, **changed}, plan.activations)


def _deal(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole shares of `total` in proportion to the weights; all equal where all weights are 0."""
    together = math.fsum(weights.values())
    if not together:
        return _deal(total, dict.fromkeys(weights, 1.0)) if weights else {}
    exact = {name: total * weight / together for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    # What is left goes to the largest remainders, the first of equal ones.
    order = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in order[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _check(norms: Mapping[str, float]) -> None:
    for name, norm in norms.items():
        if not 0 <= norm < math.inf:
            raise EsnacError(f"The gradient of {name} has the norm {norm}; no bits can follow it.")
