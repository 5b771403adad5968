"""What must be stored for a layer, in bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from esnac.deployment.micronet.description import Description
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer

#: Layers of products and sums.
PRODUCTS = ("conv", "linear")


def folded_norms(graph: ArchGraph) -> dict[int, int]:
    """Batch norms (by number) that become part of the convolution or linear layer they follow.

    Only if nothing else reads that layer and nothing is added in between. The others stay.
    """
    readers: dict[int, int] = {}
    for layer in graph.layers:
        for i in layer.inputs:
            readers[i] = readers.get(i, 0) + 1
    found = {}
    for number, layer in enumerate(graph.layers):
        if layer.kind != "batch_norm" or not layer.attributes["track"] or len(layer.inputs) > 1:
            continue
        (before,) = layer.inputs
        if before != INPUT and graph.layers[before].kind in PRODUCTS and readers[before] == 1:
            found[number] = before
    return found


def tensor_sizes(layer: Layer, has_bias: bool) -> dict[str, int]:
    """Values of each stored tensor by name; a norm that is not folded has one scale and shift."""
    channels = layer.out_shape[0]
    if layer.kind in PRODUCTS:
        fan_in = layer.in_shape[0] // layer.attributes.get("groups", 1)
        fan_in *= math.prod(layer.attributes.get("kernel", ()))
        sizes = {"weight": channels * fan_in}
        sizes |= {"bias": channels} if has_bias else {}
    else:
        # A batch norm without learned values still has its statistics.
        norm = layer.kind == "batch_norm" or layer.attributes.get("affine", False)
        sizes = {"weight": channels, "bias": channels} if norm else {}
    return {f"{layer.name}.{tensor}": size for tensor, size in sizes.items()}


def stored_bits(layer: Layer, sizes: Mapping[str, int], description: Description) -> float:
    """Values, masks of sparse tensors (one bit per element), and what goes with them.

    A channel shuffle is stored as a sparse permutation matrix of ones.
    """
    total = 0.0
    for name, size in sizes.items():
        nonzeros = description.nonzeros.get(name, size)
        total += nonzeros * description.bits_of(name) + (size if nonzeros < size else 0)
        total += description.extra.get(name, 0)
    if layer.kind == "channel_shuffle":
        channels = layer.out_shape[0]
        total += channels * channels + channels
    return total + description.extra.get(f"{layer.name}.input", 0)
