"""What each part of a packed file costs, and what it would cost otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esnac.quantization import container, entropy
from esnac.quantization.codes import Codes
from esnac.quantization.packing import Stored, entries, unpack

#: Most levels for which codes are also counted in pairs.
_MOST_PAIRED = 16

COLUMNS = ("raw", "fixed", "huffman", "entropy", "codes", "scales", "table", "mask", "stored")


@dataclass(frozen=True)
class TensorSize:
    """One tensor of a packed file; sizes in bytes.

    `stored` = `codes` + `scales` (with offsets) + `table` + `mask`, as they lie in the file; a
    tensor that is not quantised has `levels` None and its values under `codes`. For comparison:
    `raw` in float32 or its own type, `fixed` with ceil(log2(levels)) bits for each code, `huffman`
    by the shorter of a code of symbols and one of pairs (half a byte per symbol or pair for the
    lengths of its words included), `entropy` the least there is for codes without memory; all three
    of the codes alone, of which there are none under a mask.
    """

    name: str
    numel: int
    levels: int | None
    raw: int
    fixed: int
    huffman: float
    entropy: float
    codes: int
    scales: int
    table: int
    mask: int

    @property
    def stored(self) -> int:
        return self.codes + self.scales + self.table + self.mask


@dataclass(frozen=True)
class SizeReport:
    """Sizes in bytes. `header` is all that is no tensor: architecture, names, checksum.

    `total`, the size of the file, is `header` and the `stored` of all rows.
    """

    rows: tuple[TensorSize, ...]
    header: int
    total: int

    def totals(self) -> dict[str, float]:
        """The sum of each column of bytes; `raw` / `total` is how much smaller the file is."""
        return {column: sum(getattr(row, column) for row in self.rows) for column in COLUMNS}


def size_report(packed: Path | bytes) -> SizeReport:
    """Reads a packed file (or its bytes). Raises WeightsError when it is damaged."""
    where = "The file" if isinstance(packed, bytes) else str(packed)
    data = packed if isinstance(packed, bytes) else container.read_bytes(packed)
    tensors, _ = unpack(data, where)
    header, payload = container.unseal(data, where)
    rows = []
    for entry, parts in entries(header, payload):
        sizes = {part: len(piece) for part, piece in parts.items()}
        rows.append(_row(entry["name"], tensors[entry["name"]], sizes))
    return SizeReport(tuple(rows), len(data) - len(payload), len(data))


def _row(name: str, stored: Stored, sizes: dict[str, int]) -> TensorSize:
    if not isinstance(stored, Codes):
        count, values, mask = stored.numel(), sizes["values"], sizes.get("keep", 0)
        raw = count * stored.element_size()
        return TensorSize(name, count, None, raw, raw, raw, raw, values, 0, 0, mask)
    codes = stored.codes if stored.keep is None else stored.codes[stored.keep]
    flat, levels = codes.reshape(-1).numpy().astype(np.uint8), stored.levels
    counts = entropy.count_codes(flat, levels)
    huffman = len(flat) * entropy.huffman_bits(counts) / 8 + levels / 2
    if levels <= _MOST_PAIRED:
        pairs = entropy.count_pairs(flat, levels)
        huffman = min(huffman, pairs.sum() * entropy.huffman_bits(pairs) / 8 + levels**2 / 2)
    return TensorSize(
        name=name,
        numel=stored.codes.numel(),
        levels=levels,
        raw=4 * stored.codes.numel(),
        fixed=math.ceil(len(flat) * max((levels - 1).bit_length(), 1) / 8),
        huffman=float(huffman),
        entropy=len(flat) * entropy.entropy(counts) / 8,
        codes=sizes["codes"],
        scales=sizes["scale"] + sizes.get("offset", 0),
        table=sizes["table"],
        mask=sizes.get("keep", 0),
    )
