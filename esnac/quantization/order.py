"""The layers of a network that can be quantised, and which of them come first and last.

By the flow of data, not by the order of definition: first are the weights that the input meets,
last those that make the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.graphs.arch_graph import INPUT, ArchGraph
from esnac.graphs.network import StudentNetwork
from esnac.runtime import evaluating

_PLAIN = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def quantizable(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the weights of each layer, by its path: convolutions, linear and recurrent layers,
    embeddings and attention (with its output projection)."""
    found: dict[str, tuple[str, ...]] = {}
    inside = {
        id(layer.out_proj)
        for layer in network.modules()
        if isinstance(layer, nn.MultiheadAttention)
    }
    for path, layer in network.named_modules():
        tensors = () if id(layer) in inside else _weights(layer)
        if tensors:
            prefix = f"{path}." if path else ""
            found[path] = tuple(prefix + tensor for tensor in tensors)
    return found


def ends(network: nn.Module, inputs: Sequence[Tensor] = ()) -> tuple[set[str], set[str]]:
    """Names of the weights that meet the input, and of those that make the output.

    A StudentNetwork knows them from its graph. Any other network is run once on `inputs`, and the
    layer that is called first and the one that is called last count. Of a stack of recurrent layers
    only the first (its input weights) or the last one is meant, of attention the input or the
    output projections. Raises EsnacError without `inputs` where they are needed.
    """
    layers = quantizable(network)
    if isinstance(network, StudentNetwork):
        first, last = _graph_ends(network.graph, set(layers))
    else:
        first, last = _called_ends(network, set(layers), inputs)
    modules = dict(network.named_modules())
    meets = {name for path in first for name in layers[path] if _meets(modules[path], name)}
    makes = {name for path in last for name in layers[path] if _makes(modules[path], name)}
    return meets, makes


def _weights(layer: nn.Module) -> tuple[str, ...]:
    if isinstance(layer, nn.RNNBase):
        return tuple(name for name in layer._flat_weights_names if name.startswith("weight"))
    if isinstance(layer, nn.MultiheadAttention):
        own = tuple(name for name in _ATTENTION if getattr(layer, name, None) is not None)
        return (*own, "out_proj.weight")
    return ("weight",) if isinstance(layer, _PLAIN) else ()


def _meets(layer: nn.Module, name: str) -> bool:
    tensor = name.rpartition(".")[2]
    if isinstance(layer, nn.RNNBase):
        return tensor.startswith("weight_ih_l0")
    return not (isinstance(layer, nn.MultiheadAttention) and name.endswith("out_proj.weight"))


def _makes(layer: nn.Module, name: str) -> bool:
    if isinstance(layer, nn.RNNBase):
        kind, _, place = name.rpartition(".")[2].rpartition("_l")
        is_last = place.removesuffix("_reverse") == str(layer.num_layers - 1)
        return is_last and (kind == "weight_hr" or not layer.proj_size)
    return not isinstance(layer, nn.MultiheadAttention) or name.endswith("out_proj.weight")


def _graph_ends(graph: ArchGraph, weighted: set[str]) -> tuple[set[str], set[str]]:
    layers = graph.layers
    raw, first = {INPUT}, set()  # what is still the input, without weights in between
    for number, layer in enumerate(layers):
        if raw.intersection(layer.inputs):
            if layer.name in weighted:
                first.add(layer.name)
            else:
                raw.add(number)
    open_, last = {len(layers) - 1}, set()  # what reaches the output without weights in between
    for number in reversed(range(len(layers))):
        if number in open_:
            if layers[number].name in weighted:
                last.add(layers[number].name)
            else:
                open_.update(layers[number].inputs)
    return first, last


@torch.no_grad()
def _called_ends(
    network: nn.Module, weighted: set[str], inputs: Sequence[Tensor]
) -> tuple[set[str], set[str]]:
    if not inputs:
        raise EsnacError(
            "Which layers are first and last shows when the network runs: give example inputs, "
            "or treat all layers alike (ends = weights = activations)."
        )
    calls: list[str] = []
    handles = []
    for path in weighted:

        def note(_layer: nn.Module, _args: Any, path: str = path) -> None:
            calls.append(path)

        handles.append(network.get_submodule(path).register_forward_pre_hook(note))
    try:
        with evaluating(network):
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return set(calls[:1]), set(calls[-1:])
