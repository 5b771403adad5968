"""How many bits and zeros a network has, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac.deployment.micronet.folding import folded_norms
from esnac.deployment.micronet.sums import FULL
from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs.masks import effective_weights, mask_of
from esnac.graphs.network import StudentNetwork

#: Bits per value where the freebie is claimed; it is refused below.
HALF = 16


@dataclass(frozen=True)
class Description:
    """What is stored and read in how many bits.

    Names are `<layer>.weight`, `<layer>.bias` (also of a folded norm's convolution) and
    `<layer>.input`, the numbers that a layer reads. `bits`: per value, 0 to 32; a fraction is meant
    for storage, operations round it up. `nonzeros`: how many values of a weight are not zero; a
    name that is missing has no zeros, or keeps them as values. `extra`: further bits that go with a
    tensor, such as scales, zero points and code tables. `default`: bits of whatever has no name
    in `bits`. `computed`: bits of a value in a multiplication where they are not those it is stored
    with.
    """

    bits: Mapping[str, float] = field(default_factory=dict)
    nonzeros: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    default: float = FULL
    computed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [*self.bits.items(), *self.computed.items(), ("the default", self.default)]
        for name, bits in given:
            if not 0 < bits <= FULL:
                raise EsnacError(f"{name} has {bits} bits; from 1 to {FULL} are meant.")
        for name, bits in self.extra.items():
            if not 0 <= bits < math.inf:
                raise EsnacError(f"{name} cannot have {bits} further bits.")

    def bits_of(self, name: str) -> float:
        return self.bits.get(name, self.default)

    def width(self, name: str) -> int:
        """Whole bits of one value when it is computed with."""
        return math.ceil(self.computed.get(name, self.bits_of(name)))

    def check(self, sizes: Mapping[str, int], others: Iterable[str]) -> None:
        """Raises an EsnacError for a name that is not counted, or more values than a tensor has.

        `sizes`: values of the stored tensors; `others`: further names that may have bits.
        """
        known = {*sizes, *others}
        for name in (*self.bits, *self.extra, *self.nonzeros, *self.computed):
            if name not in known:
                raise UnknownNameError("tensor of the score", name, known)
        for name, count in self.nonzeros.items():
            size = sizes.get(name, 0)
            if not 0 <= count <= size:
                raise EsnacError(f"{name} has {size} values; {count} of them cannot be non-zero.")

    def halved(self) -> Description:
        """16 bits for everything: the freebie. Raises EsnacError if anything has fewer."""
        for name, bits in [*self.bits.items(), ("everything without a name", self.default)]:
            if bits < HALF:
                raise EsnacError(
                    f"The 16-bit freebie is for networks without quantisation, but {name} has "
                    f"{bits:g} bits. Score this network without the freebie."
                )
        return Description(nonzeros=self.nonzeros, extra=self.extra, default=HALF)


@torch.no_grad()
def describe(network: StudentNetwork) -> Description:
    """The description of a student as it is, pruned and quantised or not.

    Quantised weights have their quantiser's codes, and zeros where a mask says so. Of others, those
    of two and more dimensions are sparse in which one value in 32 or more is exactly 0: with fewer
    the mask would cost more than the zeros, which may have come by chance. Scales, offsets and
    uneven code tables count 32 bits per value, and so do step and zero point of a quantised input.
    The scales of a folded norm go into a weight's own where it has one per channel; they are stored
    where it has fewer or buckets. What is multiplied has as many bits as the codes only if these
    are even steps of one scale per channel or tensor; values of a codebook or of buckets are
    multiplied with 32 bits.
    """
    bits: dict[str, float] = {}
    nonzeros: dict[str, int] = {}
    extra: dict[str, float] = {}
    computed: dict[str, float] = {}
    layers = network.graph.layers
    normed = {layers[before].name for before in folded_norms(network.graph).values()}
    for name, weight in effective_weights(network).items():
        codes = _codes(network, name)
        if codes is not None:
            bits[name] = max(math.ceil(math.log2(codes.levels)), 1)
            norm = len(weight) if name.rpartition(".")[0] in normed else 0
            extra[name] = FULL * _values_beside(codes, norm)
            if isinstance(codes.rows, int) or not _even(codes.table):
                computed[name] = FULL
            mask = mask_of(network, name)
            keep = codes.keep if mask is None else mask.keep
            if keep is not None and not keep.all():
                nonzeros[name] = int(keep.sum())
        elif weight.dim() >= 2:
            count = int(torch.count_nonzero(weight))
            if FULL * (weight.numel() - count) >= weight.numel():
                nonzeros[name] = count
    for layer in layers:
        quantizer = getattr(network, layer.name)._modules.get("input_quantizer")
        if quantizer is not None:
            bits[f"{layer.name}.input"] = float(quantizer.settings.bits)
            extra[f"{layer.name}.input"] = FULL * (1 + bool(getattr(quantizer, "zero_point", 0)))
    return Description(bits, nonzeros, extra, computed=computed)


def _codes(network: nn.Module, name: str) -> Any:
    """The `quantization.codes.Codes` of a weight, or None; the room itself lies beside this one."""
    path, _, tensor = name.rpartition(".")
    module = network.get_submodule(path)
    if not parametrize.is_parametrized(module, tensor):
        return None
    chain: Any = module.parametrizations[tensor]  # type: ignore[index]
    for part in chain:
        if hasattr(part, "codes"):
            return part.codes(chain.original)
    return None


def _values_beside(codes: Any, norm: int) -> int:
    """Scales, those of a norm of `norm` channels that do not fit into them, offsets, and the table
    of points unless they are evenly spaced."""
    count: int = codes.scale.numel()
    if norm and codes.rows != "channel":
        count = norm if codes.rows == "tensor" and _even(codes.table) else count + norm
    count += 0 if codes.offset is None else codes.offset.numel()
    return count if _even(codes.table) else count + len(codes.table)


def _even(table: Tensor) -> bool:
    steps = table.double().diff()
    return len(steps) == 0 or bool((steps - steps[0]).abs().max() <= 1e-5 * steps.abs().max())
