"""The score of a graph with its description, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esnac.deployment.micronet.description import Description
from esnac.deployment.micronet.folding import PRODUCTS, folded_norms
from esnac.deployment.micronet.operations import Call, Work, addition, work
from esnac.deployment.micronet.storage import stored_bits, tensor_sizes
from esnac.deployment.micronet.sums import FULL, Accumulation
from esnac.deployment.micronet.tasks import Task
from esnac.errors import EsnacError
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer

#: What only passes on, chooses or averages numbers: they stay as wide and as positive as they were.
_PASSING = frozenset(
    {"identity", "flatten", "concat", "slice", "dropout", "dropout2d", "stochastic_depth"}
    | {"channel_shuffle", "max_pool", "adaptive_max_pool", "avg_pool", "adaptive_avg_pool"}
    | {"multiply"}
)
_POSITIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus"})


@dataclass(frozen=True)
class Row:
    """One layer, or an addition before it (kind "add").

    `weights` and `nonzeros`: values of its weight. `storage`: 32-bit parameters; `multiplies` and
    `additions`: 32-bit operations of one example. `weight_bits` is None without a weight.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    nonzeros: int
    weight_bits: float | None
    input_bits: float
    storage: float
    multiplies: float
    additions: float

    @property
    def operations(self) -> float:
        return self.multiplies + self.additions


@dataclass(frozen=True)
class Score:
    """`warning`: a sentence if the network is not good enough to be an entry, else None."""

    task: Task
    accumulation: Accumulation
    freebie: bool
    rows: tuple[Row, ...]
    warning: str | None = None

    @property
    def storage(self) -> float:
        return math.fsum(row.storage for row in self.rows)

    @property
    def multiplies(self) -> float:
        return math.fsum(row.multiplies for row in self.rows)

    @property
    def additions(self) -> float:
        return math.fsum(row.additions for row in self.rows)

    @property
    def operations(self) -> float:
        return self.multiplies + self.additions

    @property
    def value(self) -> float:
        return self.task.score(self.storage, self.operations)


def score(
    graph: ArchGraph,
    task: Task,
    description: Description | None = None,
    *,
    accumulation: Accumulation = "fp32",
    freebie: bool = False,
    quality: float | None = None,
) -> Score:
    """The score of a network; without a description all its numbers have 32 bits.

    `freebie`: weights count 16 bits and multiplies half, additions stay whole; refused with an
    EsnacError if anything has fewer than 16 bits. `quality`: its accuracy (a fraction) or
    perplexity, for `warning`. Raises UnknownNameError for a description of another network.
    """
    description = description or Description()
    if freebie:
        if accumulation != "fp32":
            raise EsnacError(f"The 16-bit freebie adds at 32 bits; it excludes {accumulation!r}.")
        description = description.halved()
    rows = tuple(_Count(graph, description, accumulation).rows())
    warning = None if quality is None else task.shortfall(quality)
    return Score(task, accumulation, freebie, rows, warning)


class _Count:
    """One pass over the layers."""

    def __init__(
        self, graph: ArchGraph, description: Description, accumulation: Accumulation
    ) -> None:
        self.layers, self.description, self.accumulation = graph.layers, description, accumulation
        self.folded = folded_norms(graph)
        self.takes_norm = set(self.folded.values())
        self.sizes = [self.sizes_of(number) for number in range(len(graph))]
        stored = {name: size for sizes in self.sizes for name, size in sizes.items()}
        description.check(stored, [f"{layer.name}.input" for layer in graph.layers])
        self.signed = _signed(graph.layers)

    def sizes_of(self, number: int) -> dict[str, int]:
        layer = self.layers[number]
        if number in self.folded:
            return {}
        has_bias = bool(layer.attributes.get("bias")) or number in self.takes_norm
        return tensor_sizes(layer, has_bias)

    def rows(self) -> list[Row]:
        rows = []
        for number, layer in enumerate(self.layers):
            if len(layer.inputs) > 1 and layer.kind not in ("concat", "multiply"):
                sums = addition(layer).additions
                rows.append(Row(layer.name, "add", layer.in_shape, 0, 0, None, FULL, 0, 0, sums))
            rows.append(self.row(number))
        return rows

    def row(self, number: int) -> Row:
        layer, sizes, description = self.layers[number], self.sizes[number], self.description
        name = f"{layer.name}.weight"
        weights = sizes.get(name, 0)
        nonzeros = description.nonzeros.get(name, weights)
        done = Work() if number in self.folded else work(self.call(number, nonzeros))
        return Row(
            layer.name,
            layer.kind,
            layer.out_shape,
            weights,
            nonzeros,
            description.bits_of(name) if weights else None,
            description.bits_of(f"{layer.name}.input"),
            stored_bits(layer, sizes, description) / FULL,
            done.multiplies,
            done.additions,
        )

    def call(self, number: int, nonzeros: int) -> Call:
        layer, description = self.layers[number], self.description
        bias = f"{layer.name}.bias"
        return Call(
            layer,
            self.accumulation,
            reads=description.width(f"{layer.name}.input"),
            signed=self.signed[number],
            width=self.width(number),
            nonzeros=nonzeros,
            weight=description.width(f"{layer.name}.weight"),
            bias=description.width(bias) if bias in self.sizes[number] else 0,
        )

    def width(self, number: int) -> int:
        """Bits of a layer's multiplies: the wider of its weight and what it reads.

        A ReLU right after a convolution or linear layer is part of it, and as wide, unless its own
        input has bits of its own.
        """
        layer, description = self.layers[number], self.description
        reads = description.width(f"{layer.name}.input")
        if f"{layer.name}.weight" in self.sizes[number]:
            return max(reads, description.width(f"{layer.name}.weight"))
        if layer.kind in ("relu", "relu6") and f"{layer.name}.input" not in description.bits:
            before = self.folded.get(layer.inputs[0], layer.inputs[0])
            alone = len(layer.inputs) == 1 and before != INPUT
            if alone and self.layers[before].kind in PRODUCTS:
                return self.width(before)
        return reads


def _signed(layers: Sequence[Layer]) -> list[bool]:
    """Whether what each layer reads may be negative; the network's input may."""
    reads: list[bool] = []
    makes = {INPUT: True}
    for number, layer in enumerate(layers):
        reads.append(any(makes[i] for i in layer.inputs))
        passed = layer.kind in _PASSING and not reads[number]
        makes[number] = not (passed or layer.kind in _POSITIVE)
    return reads
