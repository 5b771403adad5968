"""Named tensors, plain or as `Codes`, to bytes and back.

A quantised tensor is stored in parts: table, scale, offset, mask, codes; another one as its values,
and a mask where it is sparse enough for that to pay. Numbers are kept as
float16 where that loses nothing, a table that is an even grid is not kept at all, and codes and
mask are kept as bits or by `rans`, whichever is shorter. Under the mask there are no codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esnac.errors import EsnacError, WeightsError
from esnac.quantization import bits, container, rans
from esnac.quantization.buckets import Scaling
from esnac.quantization.codes import Codes, count_rows
from esnac.quantization.uniform import MOST_LEVELS, grid

#: A tensor as it is, or quantised.
Stored = Tensor | Codes
#: What the header says of a tensor: "name", "shape", "parts" {part: {"size": bytes, "as": coding}}
#: in the order of the payload, and "dtype" or, for Codes, "rows" and "levels".
Entry = dict[str, Any]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    + (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}
_GRIDS: dict[str, Scaling] = {"linear": "linear", "symmetric": "absmax"}
#: How a table of consecutive integers is kept: by the first of them.
INTEGERS = "integers"


def pack(tensors: Mapping[str, Stored], about: dict[str, Any]) -> bytes:
    """A file's bytes: `unpack` gives the tensors again, bit for bit, and `about` (plain JSON data).

    Of Codes with a mask, the codes under it come back as 0. Raises EsnacError for a tensor whose
    type no file keeps or codes beyond their table.
    """
    entries, pieces = [], []
    for name, stored in tensors.items():
        if isinstance(stored, Codes):
            entry, parts = _write_codes(name, stored)
        else:
            entry, parts = _write_plain(name, stored)
        entries.append(entry)
        pieces += parts
    return container.seal({"about": about, "tensors": entries}, b"".join(pieces))


def unpack(data: bytes, where: str = "The file") -> tuple[dict[str, Stored], dict[str, Any]]:
    """What `pack` was given, on the CPU.

    Nothing is allocated before the file's own sizes agree with it. Raises WeightsError, in which
    `where` names the file.
    """
    found: dict[str, Stored] = {}
    header, payload = container.unseal(data, where)
    try:
        for entry, parts in entries(header, payload):
            read = _read_codes if "levels" in entry else _read_plain
            found[str(entry["name"])] = read(entry, parts)
        about = header["about"]
        if not isinstance(about, dict):
            raise ValueError("about is no table")
    except WeightsError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise container.damaged(where, error) from None
    except (RuntimeError, EsnacError) as error:  # torch's own checks of sizes, and those of Codes
        raise container.damaged(where, error) from None
    return found, about


def entries(
    header: Mapping[str, Any], payload: memoryview
) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """Each tensor's entry and the bytes of its parts. Raises ValueError unless they use it up."""
    spent = 0
    for entry in header["tensors"]:
        parts = {}
        for part, about in entry["parts"].items():
            size = _count(about["size"])
            if size > len(payload) - spent:
                raise ValueError("the end is missing")
            parts[part] = bytes(payload[spent : spent + size])
            spent += size
        yield entry, parts
    if spent != len(payload):
        raise ValueError("more bytes than its header tells of")


def _write_plain(name: str, tensor: Tensor) -> tuple[Entry, list[bytes]]:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise EsnacError(f"{name} is {tensor.dtype}; a packed file keeps {', '.join(DTYPES)}.")
    flat = tensor.detach().cpu().reshape(-1)
    written = {"values": _from_numbers(flat)}
    keep = _not_zero(flat)
    if not keep.all():
        sparse = {"keep": _from_codes(keep.numpy().astype(np.uint8), 2)}
        sparse["values"] = _from_numbers(flat[keep])
        written = min(written, sparse, key=_bytes)
    entry = {"name": name, "shape": list(tensor.shape), "dtype": kind, "parts": _index(written)}
    return entry, [data for _, data in written.values()]


def _read_plain(entry: Entry, parts: Mapping[str, bytes]) -> Tensor:
    shape, kind = _shape(entry), entry["dtype"]
    count, coding = math.prod(shape), entry["parts"]["values"]["as"]
    if "keep" not in parts:
        return _to_numbers(parts["values"], count, coding, kind).reshape(shape)
    keep = _to_mask(parts["keep"], count, entry["parts"]["keep"]["as"])
    values = _to_numbers(parts["values"], int(keep.sum()), coding, kind)
    return torch.zeros(count, dtype=values.dtype).masked_scatter_(keep, values).reshape(shape)


def _write_codes(name: str, stored: Codes) -> tuple[Entry, list[bytes]]:
    codes, keep = stored.codes.detach().cpu(), stored.keep
    if keep is not None:
        keep = keep.detach().cpu()
        codes = codes[keep]
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < stored.levels:
        raise EsnacError(f"{name} has codes beyond its {stored.levels} levels.")
    if not 1 <= stored.levels <= MOST_LEVELS:
        raise EsnacError(f"{name} has {stored.levels} levels; a code is a byte at most.")
    written = {"table": _from_table(stored.table), "scale": _from_numbers(stored.scale)}
    if stored.offset is not None:
        written["offset"] = _from_numbers(stored.offset)
    if keep is not None:
        written["keep"] = _from_codes(keep.reshape(-1).numpy().astype(np.uint8), 2)
    written["codes"] = _from_codes(codes.reshape(-1).numpy().astype(np.uint8), stored.levels)
    entry = {
        "name": name,
        "shape": list(stored.codes.shape),
        "rows": stored.rows,
        "levels": stored.levels,
        "parts": _index(written),
    }
    return entry, [data for _, data in written.values()]


def _read_codes(entry: Entry, parts: Mapping[str, bytes]) -> Codes:
    shape, levels = _shape(entry), _count(entry["levels"])
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"{levels} levels")
    how = {part: about["as"] for part, about in entry["parts"].items()}
    count, rows = math.prod(shape), count_rows(shape, entry["rows"])
    keep = None
    if "keep" in parts:
        keep = _to_mask(parts["keep"], count, how["keep"])
        count = int(keep.sum())
    codes = torch.from_numpy(_to_codes(parts["codes"], count, levels, how["codes"]))
    if keep is not None:
        codes = keep.to(torch.uint8).masked_scatter_(keep, codes)
        keep = keep.reshape(shape)
    offset = None
    if "offset" in parts:
        offset = _to_numbers(parts["offset"], rows, how["offset"]).reshape(-1, 1)
    return Codes(
        codes=codes.reshape(shape),
        table=_to_table(parts["table"], levels, how["table"]),
        scale=_to_numbers(parts["scale"], rows, how["scale"]).reshape(-1, 1),
        offset=offset,
        rows=entry["rows"],
        keep=keep,
    )


def _from_numbers(tensor: Tensor) -> tuple[str, bytes]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype == torch.float32 and torch.equal(flat.half().float(), flat):
        flat = flat.half()
    return str(flat.dtype).removeprefix("torch."), flat.view(torch.uint8).numpy().tobytes()


def _to_numbers(data: bytes, count: int, coding: str, kind: str = "float32") -> Tensor:
    dtype = DTYPES[coding]
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {count} numbers of {coding}")
    if not count:
        return torch.empty(0, dtype=DTYPES[kind])
    return torch.frombuffer(bytearray(data), dtype=dtype).to(DTYPES[kind])


def _from_table(table: Tensor) -> tuple[str, bytes]:
    table = table.detach().cpu()
    for name, scaling in _GRIDS.items():
        fits = len(table) > 1 and (scaling == "linear" or len(table) % 2)
        if fits and torch.equal(grid(len(table), scaling), table):
            return name, b""
    first = table[:1].to(torch.int8)
    if torch.equal(_integers(first, len(table)), table):
        return INTEGERS, first.numpy().tobytes()
    return _from_numbers(table)


def _integers(first: Tensor, levels: int) -> Tensor:
    """`levels` consecutive integers from `first` (one int8) as float32."""
    return first.float() + torch.arange(levels)


def _to_table(data: bytes, levels: int, coding: str) -> Tensor:
    if coding == INTEGERS and len(data) == 1:
        return _integers(torch.frombuffer(bytearray(data), dtype=torch.int8), levels)
    if coding not in _GRIDS:
        return _to_numbers(data, levels, coding)
    if data:
        raise ValueError("a grid with numbers")
    return grid(levels, _GRIDS[coding])


def _from_codes(codes: NDArray[np.uint8], levels: int) -> tuple[str, bytes]:
    packed = bits.pack(codes, levels)
    coded = rans.encode(codes, levels) if len(codes) else packed
    return ("rans", coded) if len(coded) < len(packed) else ("bits", packed)


def _to_codes(data: bytes, count: int, levels: int, coding: str) -> NDArray[np.uint8]:
    if coding == "rans":
        return rans.decode(data, count, levels)
    if coding == "bits":
        return bits.unpack(data, count, levels)
    raise ValueError(f"codes kept as {coding!r}")


def _to_mask(data: bytes, count: int, coding: str) -> Tensor:
    return torch.from_numpy(_to_codes(data, count, 2, coding)).bool()


def _not_zero(flat: Tensor) -> Tensor:
    """All but zeros; a zero with a sign is kept, so that every bit comes back."""
    return (flat != 0) | flat.signbit()


def _bytes(written: Mapping[str, tuple[str, bytes]]) -> int:
    return sum(len(data) for _, data in written.values())


def _index(written: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    return {part: {"size": len(data), "as": coding} for part, (coding, data) in written.items()}


def _shape(entry: Entry) -> tuple[int, ...]:
    return tuple(_count(size) for size in entry["shape"])


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
