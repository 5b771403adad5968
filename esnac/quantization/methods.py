"""The published ways to few bits by name: which quantisers of weights and inputs go together.

lsq      learned steps for both (Esser et al. 2020)
dorefa   weights through tanh, inputs clamped to a fixed range (Zhou et al. 2016); what the network
         is given, of either sign, between averages of its extremes
pact     weights as in dorefa, inputs below a learned bound (Choi et al. 2018)
qd       weights between the extremes of buckets (Polino et al. 2018); inputs, which the paper
         leaves, between averages of their extremes
dq       as qd, with trained points (`points`) but for the first and the last layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from esnac.quantization._base import ActivationSettings, WeightSettings
from esnac.quantization.attach import Plan
from esnac.quantization.dorefa import DoReFaActivationSettings, DoReFaWeightSettings
from esnac.quantization.lsq import LSQActivationSettings, LSQWeightSettings
from esnac.quantization.minmax import MinMaxActivationSettings
from esnac.quantization.order import ends
from esnac.quantization.pact import PACTSettings
from esnac.quantization.points import CodebookSettings
from esnac.quantization.policy import FLOAT, Policy, make_plan
from esnac.quantization.uniform import levels_of
from esnac.quantization.uniform_weight import UniformSettings

Method = Literal["lsq", "dorefa", "pact", "qd", "dq"]

_KINDS: dict[Method, tuple[WeightSettings, ActivationSettings]] = {
    "lsq": (LSQWeightSettings(), LSQActivationSettings()),
    "dorefa": (DoReFaWeightSettings(), DoReFaActivationSettings()),
    "pact": (DoReFaWeightSettings(), PACTSettings()),
    "qd": (UniformSettings(), MinMaxActivationSettings()),
    "dq": (UniformSettings(), MinMaxActivationSettings()),
}


def require_bits(method: Method, policy: Policy) -> None:
    """SettingsError for bits in `policy` that the quantisers of `method` do not have."""
    weights: Any
    activations: Any
    weights, activations = _KINDS[method]
    for width, inputs in policy.widths:
        if width != FLOAT:
            replace(weights, bits=width)
        if FLOAT not in (inputs, policy.activations):
            replace(activations, bits=inputs)


def plan_of(
    network: nn.Module,
    method: Method,
    policy: Policy,
    bucket: int = 256,
    inputs: Sequence[Tensor] = (),
) -> Plan:
    """The quantisers of `method` on `network` with the bits of `policy`.

    With float activations inputs stay as they are, those of the ends too. `bucket` (qd, dq):
    weights that share a scale. `inputs` and errors as of `make_plan`.
    """
    weights, activations = _KINDS[method]
    if isinstance(weights, UniformSettings):
        weights = replace(weights, rows=bucket)
    quantized = None if policy.activations == FLOAT else activations
    plan = make_plan(network, policy, weights, quantized, inputs)
    chosen = {name: _of_layer(network, name, s) for name, s in plan.weights.items()}
    if method == "dq":
        chosen = {name: _points(s, policy.weights) for name, s in chosen.items()}
    if method == "dorefa":
        return Plan(chosen, _first_signed(network, plan, inputs))
    return Plan(chosen, plan.activations)


def _of_layer(network: nn.Module, name: str, settings: WeightSettings) -> WeightSettings:
    """DoReFa's variant for linear layers, which no batch norm follows to take the scale out."""
    layer = network.get_submodule(name.rpartition(".")[0])
    if isinstance(settings, DoReFaWeightSettings) and isinstance(layer, nn.Linear):
        return replace(settings, variant="row")
    return settings


def _first_signed(
    network: nn.Module, plan: Plan, inputs: Sequence[Tensor]
) -> dict[str, ActivationSettings]:
    """What the network itself is given has negative values, which DoReFa would make 0."""
    first = {name.rpartition(".")[0] for name in ends(network, inputs)[0]}
    return {
        path: MinMaxActivationSettings(s.bits) if path in first else s
        for path, s in plan.activations.items()
    }


def _points(settings: WeightSettings, bits: float) -> WeightSettings:
    """A codebook where the policy's own bits apply; a table of points is dear at more."""
    if isinstance(settings, UniformSettings) and settings.bits == bits:
        return CodebookSettings(levels_of(bits), settings.rows)
    return settings
