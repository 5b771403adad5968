"""Putting quantisers on a network, and taking them off.

Weights are quantised by parametrizations: the state_dict holds the masters, the layer computes with
their quantised values. A mask on the same weight stays last, so zeros stay zero. Inputs of layers
are quantised by a submodule `input_quantizer`, called in a forward pre-hook. Works on any module:
convolutions, linear layers, embeddings, recurrent layers (their input sequence, not the states
inside), attention (query, key and value share a quantiser).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs.masks import Mask, effective_weights, mask_of, owner_of
from esnac.quantization._base import (
    ActivationQuantizer,
    ActivationSettings,
    WeightQuantizer,
    WeightSettings,
)
from esnac.quantization.codes import Codes
from esnac.runtime import evaluating

#: The submodule of a layer that quantises its input.
INPUT = "input_quantizer"


@dataclass(frozen=True)
class Plan:
    """Which tensors get which quantiser: weights by name ("conv1.weight"), activations by the path
    of the layer whose input they are ("conv1")."""

    weights: Mapping[str, WeightSettings] = field(default_factory=dict)
    activations: Mapping[str, ActivationSettings] = field(default_factory=dict)


def attach(network: nn.Module, plan: Plan) -> None:
    """Puts all quantisers of the plan on the network, or none of them.

    Raises EsnacError for an empty plan, a name that the network lacks (with near matches), a weight
    or input that is quantised already, and a weight that two layers share.
    """
    if not plan.weights and not plan.activations:
        raise EsnacError("The plan quantises nothing. Give it weights or activations.")
    _check(network, plan)
    weights = effective_weights(network)
    for_weights = {name: s.build(weights[name]) for name, s in plan.weights.items()}
    for_inputs = {path: s.build() for path, s in plan.activations.items()}
    for name, weight_quantizer in for_weights.items():
        _attach_weight(network, name, weight_quantizer.to(weights[name].device))
    for path, quantizer in for_inputs.items():
        layer = network.get_submodule(path)
        quantizer.layer = path
        layer.add_module(INPUT, quantizer.to(_device(layer, network)).train(layer.training))
        layer.register_forward_pre_hook(_quantize_inputs, with_kwargs=True)


def detach(network: nn.Module, *, bake: bool = True) -> None:
    """Takes the quantisers off, weights first.

    `bake`: the quantised values (and zeros under masks) become the weights; else the masters come
    back and masks stay. Raises EsnacError when there is nothing to take off.
    """
    weights = weight_quantizers(network)
    inputs = activation_quantizers(network)
    if not weights and not inputs:
        raise EsnacError("The network has no quantisers to detach.")
    for name in weights:
        module, tensor = owner_of(network, name)
        chain = _chain(module, tensor)
        assert chain is not None
        if bake or len(chain) == 1:
            with torch.no_grad():
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=bake)
        else:
            del chain[next(i for i, p in enumerate(chain) if isinstance(p, WeightQuantizer))]
    for path in inputs:
        layer = network.get_submodule(path)
        delattr(layer, INPUT)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _quantize_inputs:
                del layer._forward_pre_hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)


def weight_quantizers(network: nn.Module) -> dict[str, WeightQuantizer]:
    """The quantisers of weights by the name of the weight."""
    found = {}
    for path, module in network.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor, chain in module.parametrizations.items():
            for part in chain:
                if isinstance(part, WeightQuantizer):
                    found[f"{path}.{tensor}" if path else tensor] = part
    return found


def activation_quantizers(network: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantisers of inputs by the path of their layer."""
    return {
        path: module._modules[INPUT]
        for path, module in network.named_modules()
        if isinstance(module._modules.get(INPUT), ActivationQuantizer)
    }


def is_quantized(network: nn.Module) -> bool:
    return bool(weight_quantizers(network) or activation_quantizers(network))


def masters(network: nn.Module) -> dict[str, Tensor]:
    """The trained tensors under the quantisers, by the name of the weight; not copied."""
    found = {}
    for name in weight_quantizers(network):
        module, tensor = owner_of(network, name)
        found[name] = module.parametrizations[tensor].original  # type: ignore[index, union-attr]
    return found


@torch.no_grad()
def weight_codes(network: nn.Module) -> dict[str, Codes]:
    """The codes of all quantised weights, masks included, by the name of the weight.

    `decode` gives bitwise what the network computes with in eval mode.
    """
    quantizers, found = weight_quantizers(network), {}
    for name, master in masters(network).items():
        mask = mask_of(network, name)
        codes = quantizers[name].codes(master.detach())
        found[name] = codes if mask is None else replace(codes, keep=mask.keep)
    return found


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Starts the quantisers of inputs from batches of inputs, without training anything else.

    Raises EsnacError when a quantiser saw no data.
    """
    quantizers = activation_quantizers(network)
    with evaluating(network):
        for quantizer in quantizers.values():
            quantizer.train()
        for batch in batches:
            network(batch)
    if missed := [path for path, quantizer in quantizers.items() if not quantizer.recall()]:
        raise EsnacError(f"No data reached the quantisers of {', '.join(missed)} in calibration.")


@torch.no_grad()
def verify_fired(network: nn.Module, *inputs: Tensor) -> None:
    """Raises EsnacError, naming them, if quantisers of the network do not run.

    With `inputs` the network is run on them in eval mode; without, what ever ran counts, and merely
    looking at a quantised weight is a run of its quantiser.
    """
    weights = weight_quantizers(network).items()
    layers = activation_quantizers(network).items()
    if inputs:
        quantizers: list[WeightQuantizer | ActivationQuantizer] = [q for _, q in weights]
        for quantizer in [*quantizers, *(q for _, q in layers)]:
            quantizer.fired = False
        with evaluating(network):
            network(*inputs)
    idle = [f"weight {name}" for name, part in weights if not part.fired]
    idle += [f"input of {path}" for path, part in layers if not part.fired]
    if idle:
        raise EsnacError(
            f"Quantisers that never ran: {', '.join(idle)}. The network does not call these "
            "layers (or has not run yet); leave them out of the plan."
        )


def _check(network: nn.Module, plan: Plan) -> None:
    weights = effective_weights(network)
    shared = _shared(network)
    for name in plan.weights:
        if name not in weights:
            raise UnknownNameError("weight", name, weights)
        if name in shared:
            raise EsnacError(
                f"Weight {name} is also {shared[name]}: a quantiser would reach only one of them. "
                "Untie them or leave both out."
            )
    for name in plan.weights.keys() & weight_quantizers(network).keys():
        raise EsnacError(f"Weight {name} is quantised already. Detach its quantiser first.")
    layers = dict(network.named_modules())
    for path in plan.activations:
        if path not in layers:
            raise UnknownNameError("layer", path, layers)
        if isinstance(layers[path], nn.Embedding | nn.EmbeddingBag):
            raise EsnacError(f"The inputs of {path!r} are indices, which cannot be quantised.")
    for path in plan.activations.keys() & activation_quantizers(network).keys():
        raise EsnacError(f"The input of {path!r} is quantised already. Detach it first.")


def _shared(network: nn.Module) -> dict[str, str]:
    """Names of parameters that another name stands for too, and that name."""
    first: dict[int, str] = {}
    found = {}
    for path, module in network.named_modules():
        for tensor, parameter in module.named_parameters(path, recurse=False):
            other = first.setdefault(id(parameter), tensor)
            if other != tensor:
                found[tensor], found[other] = other, tensor
    return found


def _attach_weight(network: nn.Module, name: str, quantizer: WeightQuantizer) -> None:
    module, tensor = owner_of(network, name)
    quantizer.train(module.training)
    chain = _chain(module, tensor)
    if chain is not None and isinstance(chain[-1], Mask):
        chain.insert(len(chain) - 1, quantizer)
    else:
        parametrize.register_parametrization(module, tensor, quantizer, unsafe=True)


def _quantize_inputs(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = layer._modules[INPUT]
    assert quantizer is not None
    names = ("query", "key", "value") if isinstance(layer, nn.MultiheadAttention) else ("input",)
    # Self-attention gets one tensor three times, and is faster when that stays so.
    done: dict[int, Any] = {}

    def quantized(x: Any) -> Any:
        if id(x) not in done:
            packed = isinstance(x, PackedSequence)
            done[id(x)] = x._replace(data=quantizer(x.data)) if packed else quantizer(x)
        return done[id(x)]

    count = len(names)
    args = (*map(quantized, args[:count]), *args[count:])
    return args, {k: quantized(v) if k in names else v for k, v in kwargs.items()}


def _chain(module: nn.Module, tensor: str) -> parametrize.ParametrizationList | None:
    if not parametrize.is_parametrized(module, tensor):
        return None
    return module.parametrizations[tensor]  # type: ignore[index, return-value]


def _device(layer: nn.Module, network: nn.Module) -> torch.device:
    parameters = [*layer.parameters(), *network.parameters()]
    return parameters[0].device if parameters else torch.device("cpu")
