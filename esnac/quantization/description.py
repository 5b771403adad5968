"""Which tensor has which quantiser, as plain data: the content of `quantization.json`.

{"format": 1, "masks": ["conv2.weight"],
 "weights": {"conv2.weight": {"method": "lsq", "bits": 4, "rows": "tensor"}},
 "activations": {"conv2": {"method": "lsq", "bits": 4, "signed": null}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from esnac.errors import EsnacError, SettingsError, UnknownNameError
from esnac.graphs.masks import effective_weights, mask_of
from esnac.quantization._base import (
    ActivationQuantizer,
    ActivationSettings,
    WeightQuantizer,
    WeightSettings,
)
from esnac.quantization.attach import Plan, activation_quantizers, weight_quantizers
from esnac.quantization.dorefa import DoReFaActivationSettings, DoReFaWeightSettings
from esnac.quantization.lsq import LSQActivationSettings, LSQWeightSettings
from esnac.quantization.minmax import MinMaxActivationSettings, MinMaxWeightSettings
from esnac.quantization.pact import PACTSettings
from esnac.quantization.points import CodebookSettings
from esnac.quantization.uniform_weight import UniformSettings
from esnac.settings import build, to_plain

FORMAT = 1

#: Settings of the quantisers of weights by method.
WEIGHTS: dict[str, type] = {
    "uniform": UniformSettings,
    "lsq": LSQWeightSettings,
    "dorefa": DoReFaWeightSettings,
    "minmax": MinMaxWeightSettings,
    "codebook": CodebookSettings,
}

#: Settings of the quantisers of activations by method.
ACTIVATIONS: dict[str, type] = {
    "lsq": LSQActivationSettings,
    "dorefa": DoReFaActivationSettings,
    "pact": PACTSettings,
    "minmax": MinMaxActivationSettings,
}


def weight_settings(method: str, **values: Any) -> WeightSettings:
    """Settings by the name of their method. Raises UnknownNameError or SettingsError."""
    return _settings(WEIGHTS, "way to quantise weights", method, values)


def activation_settings(method: str, **values: Any) -> ActivationSettings:
    """Settings by the name of their method. Raises UnknownNameError or SettingsError."""
    return _settings(ACTIVATIONS, "way to quantise activations", method, values)


def describe(network: nn.Module) -> dict[str, Any]:
    """The quantisers and masks of a network, as `read` takes them."""
    weights = {name: _plain(q) for name, q in weight_quantizers(network).items()}
    activations = {path: _plain(q) for path, q in activation_quantizers(network).items()}
    masks = [name for name in effective_weights(network) if mask_of(network, name) is not None]
    return {"format": FORMAT, "masks": masks, "weights": weights, "activations": activations}


def read(description: Mapping[str, Any], where: str) -> tuple[Plan, list[str]]:
    """The plan, and the names of masked weights. Raises EsnacError, naming `where`."""
    try:
        if description["format"] != FORMAT:
            met = description["format"]
            raise EsnacError(f"{where}: format {met}, this version reads {FORMAT}.")
        weights = {n: weight_settings(**row) for n, row in description["weights"].items()}
        inputs = {n: activation_settings(**row) for n, row in description["activations"].items()}
        masks = [str(name) for name in description["masks"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise EsnacError(f"{where} does not describe quantisers ({error!r}).") from None
    except (SettingsError, UnknownNameError) as error:
        raise EsnacError(f"{where}: {error}") from None
    return Plan(weights, inputs), masks


def _settings(known: Mapping[str, type], kind: str, method: str, values: dict[str, Any]) -> Any:
    if method not in known:
        raise UnknownNameError(kind, method, known)
    return build(known[method], values, where=method)


def _plain(quantizer: WeightQuantizer | ActivationQuantizer) -> dict[str, Any]:
    values = {"method": quantizer.settings.method, **to_plain(quantizer.settings)}
    if "signed" in values and isinstance(quantizer, ActivationQuantizer) and quantizer.recall():
        values["signed"] = bool(quantizer.signed)  # as the first batch decided
    return values
