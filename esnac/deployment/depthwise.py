"""Batch norms that no convolution can take in, as convolutions themselves.

A norm that reads the output of one convolution, which nobody else reads, is folded into it by every
runtime. Others (before the activation of a residual branch, after a concatenation) stay float
between quantised layers and cost more than the layers around them. The same function is a
depthwise 1x1 convolution, which runtimes quantise like any other:

    y = (x - mean) / sqrt(var + eps) * gamma + beta = x * s + (beta - mean * s)
"""

from __future__ import annotations

import torch
from torch import nn

from esnac.deployment.micronet.folding import folded_norms
from esnac.errors import EsnacError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace


def unfoldable_norms(graph: ArchGraph) -> list[str]:
    """Names of the norms over images that cannot be folded into a convolution before them."""
    folded = folded_norms(graph, into=("conv",))
    return [
        layer.name
        for number, layer in enumerate(graph.layers)
        if layer.kind == "batch_norm" and len(layer.in_shape) == 3 and number not in folded
    ]


@torch.no_grad()
def as_depthwise(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution that computes what `norm` does in eval mode.

    Raises EsnacError for a norm without running statistics: it has no fixed function.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise EsnacError("A batch norm without running statistics is no convolution.")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, 1, groups=channels, device=norm.running_mean.device)
    conv.weight.copy_(scale.view(-1, 1, 1, 1))
    conv.bias.copy_(shift)  # type: ignore[union-attr]
    return conv.train(norm.training)


def replace_unfoldable(network: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Puts depthwise convolutions in the place of the unfoldable norms of `network`, in place.

    Gives the paths of the replaced modules. The network computes the same in eval mode; a
    StudentNetwork's graph then no longer describes it, so do this to a copy that is exported. Norms
    without running statistics, and all norms of a network that cannot be traced, stay.
    """
    replaced = []
    for path in _paths(network, input_shape):
        norm = network.get_submodule(path)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            network.set_submodule(path, as_depthwise(norm))
            replaced.append(path)
    return replaced


def _paths(network: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    if isinstance(network, StudentNetwork):
        return unfoldable_norms(network.graph)
    try:
        graph = trace(network, input_shape)
    except EsnacError:
        return []
    sources = {layer.name: layer.source for layer in graph.layers}
    paths = [sources[name] for name in unfoldable_norms(graph)]
    # A module that is called twice is two layers of one source; one of them may be foldable, but
    # its convolution computes the same in both places.
    return list(dict.fromkeys(path for path in paths if path))
