"""Which layer gets how many bits.

Biases, norms and whatever is no layer of `order.quantizable` stay as they are, and by default the
first and the last layer too.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from esnac.errors import EsnacError, SettingsError, UnknownNameError
from esnac.graphs.masks import effective_weights
from esnac.graphs.network import sources
from esnac.quantization._base import MOST_BITS, ActivationSettings, WeightSettings
from esnac.quantization.attach import Plan
from esnac.quantization.order import ends, quantizable
from esnac.settings import require

#: As wide as they are: not quantised.
FLOAT = 32


@dataclass(frozen=True)
class Policy:
    """Bits from 1 to 8 (of weights also fractions), or 32: left as it is.

    `ends`: bits of the first and the last layer, weights and input alike (8 in the LSQ paper).
    Weights of fewer than `min_numel` values are left as they are. `overrides` are rules "NAME=BITS"
    or "NAME=WEIGHTS/ACTIVATIONS" for layers (or single weights) by name or glob, as in
    "stages.2.*=2/4"; a student's layers also by their names in the traced network. Of one width
    inputs get the bits, rounded up. The last one that fits wins, also over `ends` and `min_numel`.
    """

    weights: float = 4
    activations: int = 4
    ends: int = FLOAT
    min_numel: int = 0
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_bits(self.weights, "weights", whole=False)
        _require_bits(self.activations, "activations")
        _require_bits(self.ends, "ends")
        require(self.min_numel >= 0, "min_numel", "0 or more", self.min_numel)
        for rule in self.overrides:
            _parse(rule)

    @property
    def widths(self) -> set[tuple[float, int]]:
        """Bits of weights and inputs that some layer may get."""
        rules = {_parse(rule)[1:] for rule in self.overrides}
        return {(_whole(self.weights), self.activations), (self.ends, self.ends), *rules}


def make_plan(
    network: nn.Module,
    policy: Policy,
    weights: WeightSettings | None,
    activations: ActivationSettings | None,
    inputs: Sequence[Tensor] = (),
) -> Plan:
    """The policy on a network: `weights` and `activations` (None: left as they are) with its bits.

    `inputs` are what to call the network with to see the order of its layers; a StudentNetwork
    knows it. Raises UnknownNameError for an override that fits no layer, EsnacError where the order
    is not known or nothing is left to quantise.
    """
    layers = quantizable(network)
    sizes = {name: weight.numel() for name, weight in effective_weights(network).items()}
    alike = policy.ends == policy.weights == policy.activations
    at_ends = set() if alike else set().union(*ends(network, inputs))
    weight_bits: dict[str, float] = {}
    input_bits: dict[str, int] = {}
    for path, names in layers.items():
        for name in names:
            width = policy.ends if name in at_ends else _whole(policy.weights)
            weight_bits[name] = FLOAT if sizes[name] < policy.min_numel else width
        input_bits[path] = policy.ends if at_ends.intersection(names) else policy.activations
    for rule in policy.overrides:
        _override(rule, layers, sources(network), weight_bits, input_bits)
    modules = dict(network.named_modules())
    indices = nn.Embedding | nn.EmbeddingBag
    input_bits = {k: b for k, b in input_bits.items() if not isinstance(modules[k], indices)}
    plan = Plan(_with_bits(weights, weight_bits), _with_bits(activations, input_bits))
    if not plan.weights and not plan.activations:
        raise EsnacError(
            f"Nothing of the network's {len(layers)} layers is left to quantise: the bits, ends, "
            "min_numel and overrides leave all as they are."
        )
    return plan


def _override(
    rule: str,
    layers: dict[str, tuple[str, ...]],
    traced: dict[str, str],
    weight_bits: dict[str, float],
    input_bits: dict[str, int],
) -> None:
    pattern, weight, inputs = _parse(rule)
    paths = [path for path in layers if _named(path, traced.get(path), pattern)]
    names = []
    for name in weight_bits:
        path, _, tensor = name.rpartition(".")
        source = f"{traced[path]}.{tensor}" if path in traced else None
        names += [name] if _named(name, source, pattern) else []
    if not paths and not names:
        raise UnknownNameError("layer", pattern, layers)
    input_bits.update(dict.fromkeys(paths, inputs))
    names += [name for path in paths for name in layers[path]]
    weight_bits.update(dict.fromkeys(names, weight))


def _named(name: str, source: str | None, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(known, pattern) for known in (name, source) if known)


def _parse(rule: str) -> tuple[str, float, int]:
    """Pattern, bits of weights, bits of activations."""
    pattern, _, widths = rule.rpartition("=")
    weight, slash, inputs = widths.partition("/")
    try:
        parsed = float(weight), float(inputs) if slash else math.ceil(float(weight))
    except (ValueError, OverflowError):
        parsed = None
    if not pattern or parsed is None:
        raise SettingsError(f"overrides are NAME=BITS or NAME=WEIGHTS/ACTIVATIONS; got {rule!r}.")
    _require_bits(parsed[0], f"overrides: {rule}: weights", whole=False)
    _require_bits(parsed[1], f"overrides: {rule}: activations")
    return pattern.strip(), _whole(parsed[0]), int(parsed[1])


def _require_bits(bits: float, name: str, whole: bool = True) -> None:
    fits = bits == FLOAT or (1 <= bits <= MOST_BITS and (not whole or bits == int(bits)))
    kind = "whole, " if whole else ""
    require(fits, name, f"{kind}from 1 to {MOST_BITS}, or {FLOAT} for none", bits)


def _whole(bits: float) -> float:
    return int(bits) if bits == int(bits) else bits


def _with_bits(settings: Any, widths: Mapping[str, float]) -> dict[str, Any]:
    """The settings (None: none) for each name with its own bits."""
    if settings is None:
        return {}
    return {name: replace(settings, bits=b) for name, b in widths.items() if b != FLOAT}
