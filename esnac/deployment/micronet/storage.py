"""What must be stored for a layer, in bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from esnac.deployment.micronet.description import Description
from esnac.deployment.micronet.folding import PRODUCTS
from esnac.graphs.arch_graph import Layer


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
