"""Which norms become part of the layer before them."""

from __future__ import annotations

from collections.abc import Sequence

from esnac.graphs.arch_graph import INPUT, ArchGraph

#: Layers of products and sums.
PRODUCTS = ("conv", "linear")


def folded_norms(graph: ArchGraph, into: Sequence[str] = PRODUCTS) -> dict[int, int]:
    """Batch norms (by number) that become part of the layer they follow, of a kind of `into`.

    Only if they have running statistics, nothing else reads that layer and nothing is added in
    between. The others stay.
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
        if before != INPUT and graph.layers[before].kind in into and readers[before] == 1:
            found[number] = before
    return found
