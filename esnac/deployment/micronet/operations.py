"""Multiplies and additions of one layer.

Where the organisers' counter has a rule, it is theirs: ReLU is one multiply per number, swish
(SiLU) three multiplies and an addition, sigmoid two and one, although the text of the rules counts
a transcendental function once. The other activations are counted in its way: exp, log, division,
comparison and product are a multiply each. Max pooling compares; that is a multiply too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from esnac.deployment.micronet.sums import FULL, Accumulation, result_width, sum_bits
from esnac.errors import EsnacError
from esnac.graphs.arch_graph import Layer


@dataclass(frozen=True)
class Work:
    """In operations of 32 bits."""

    multiplies: float = 0.0
    additions: float = 0.0


@dataclass(frozen=True)
class Call:
    """A layer and the widths it works with.

    `reads`: bits of the numbers it reads, `signed`: whether they may be negative. `width`: bits of
    its multiplies. `nonzeros`: weights that are not zero. `bias`: bits of the bias, 0 if there is
    none, that of a folded norm included.
    """

    layer: Layer
    accumulation: Accumulation
    reads: int
    signed: bool
    width: int
    nonzeros: int = 0
    weight: int = FULL
    bias: int = 0


#: Multiplies and additions per number.
ACTIVATIONS: dict[str, tuple[int, int]] = {
    "relu": (1, 0),
    "silu": (3, 1),
    "sigmoid": (2, 1),
    # Not in the organisers' counter:
    "relu6": (2, 0),
    "leaky_relu": (2, 0),
    "elu": (3, 1),
    "gelu": (4, 1),
    "hardswish": (4, 1),
    "hardsigmoid": (3, 1),
    "tanh": (2, 2),
    "softplus": (2, 1),
    "mish": (5, 3),
}

#: Kinds that compute nothing, or nothing in evaluation.
FREE = frozenset(
    {"identity", "flatten", "concat", "slice", "dropout", "dropout2d", "stochastic_depth"}
)


def work(call: Call) -> Work:
    """What one example costs in this layer; the sum of several inputs is `addition`.

    Raises EsnacError for a kind of layer that has no rule.
    """
    kind, layer = call.layer.kind, call.layer
    numbers = math.prod(layer.out_shape)
    if kind in FREE:
        return Work()
    if kind in ACTIVATIONS:
        multiplies, additions = ACTIVATIONS[kind]
        return Work(numbers * multiplies * call.width / FULL, numbers * additions)
    if kind in _RULES:
        return _RULES[kind](call)
    raise EsnacError(
        f"Layer {layer.name!r}: the MicroNet score has no rule for {kind!r}. Replace the layer, or "
        "add its rule to esnac/deployment/micronet/operations.py."
    )


def addition(layer: Layer) -> Work:
    """The sum of what a layer reads, at 32 bits: the layer quantises it only afterwards."""
    return Work(additions=(len(layer.inputs) - 1) * math.prod(layer.in_shape))


def _products(call: Call) -> Work:
    """Convolution and linear layer: one sum per output, of as many products as weights are left.

    With n weights left in f filters, n mod f filters have one more than the others.
    """
    outputs = math.prod(call.layer.out_shape)
    filters = call.layer.out_shape[0]
    positions = outputs // filters
    terms, longer = divmod(call.nonzeros, filters)
    # A product of two signed numbers needs one sign only.
    width = min(call.weight + call.reads - call.signed, FULL)
    bits = longer * sum_bits(terms + 1, width, call.accumulation)
    bits += (filters - longer) * sum_bits(terms, width, call.accumulation)
    if call.bias:
        result = result_width(terms + bool(longer), width, call.accumulation)
        bits += filters * min(max(result, call.bias), FULL)
    return Work(call.nonzeros * positions * call.width / FULL, positions * bits / FULL)


def _norm(call: Call) -> Work:
    """A batch norm that no convolution takes in: one multiply and one addition per number."""
    numbers = math.prod(call.layer.out_shape)
    return Work(numbers * call.width / FULL, numbers)


def _group_norm(call: Call) -> Work:
    """Mean, difference, square, its mean, and per channel scale and shift.

    Per group two divisions and the inverse root, per channel the product of scale and root.
    """
    numbers, channels = math.prod(call.layer.out_shape), call.layer.out_shape[0]
    affine = bool(call.layer.attributes["affine"])
    once = 3 * call.layer.attributes["groups"] + channels * affine
    return Work((2 * numbers + once) * call.width / FULL, (3 + affine) * numbers)


def _average(call: Call) -> Work:
    """One sum over each window and one multiply by 1 / its size."""
    outputs = math.prod(call.layer.out_shape)
    bits = 0
    for size, count in _windows(call.layer).items():
        bits += count * sum_bits(size, call.reads, call.accumulation)
    return Work(outputs * call.width / FULL, call.layer.out_shape[0] * bits / FULL)


def _maximum(call: Call) -> Work:
    comparisons = sum((size - 1) * count for size, count in _windows(call.layer).items())
    return Work(call.layer.out_shape[0] * comparisons * call.width / FULL)


def _scale(call: Call) -> Work:
    factors = len(call.layer.inputs) - 1
    return Work(factors * math.prod(call.layer.out_shape) * call.width / FULL)


def _permutation(call: Call) -> Work:
    """The product with a sparse matrix that has a single one per channel."""
    return Work(math.prod(call.layer.out_shape) * call.width / FULL)


def _windows(layer: Layer) -> dict[int, int]:
    """How many windows of which size a pool has per channel; padding counts as part of a window."""
    if "kernel" in layer.attributes:
        return {math.prod(layer.attributes["kernel"]): math.prod(layer.out_shape[1:])}
    found: dict[int, int] = {}
    high, wide = (
        [-(-(i + 1) * side // cells) - i * side // cells for i in range(cells)]
        for side, cells in zip(layer.in_shape[1:], layer.out_shape[1:], strict=True)
    )
    for a in high:
        for b in wide:
            found[a * b] = found.get(a * b, 0) + 1
    return found


_RULES: dict[str, Callable[[Call], Work]] = {
    "conv": _products,
    "linear": _products,
    "batch_norm": _norm,
    "group_norm": _group_norm,
    "avg_pool": _average,
    "adaptive_avg_pool": _average,
    "max_pool": _maximum,
    "adaptive_max_pool": _maximum,
    "multiply": _scale,
    "channel_shuffle": _permutation,
}
