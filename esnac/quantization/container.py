"""A file of one header and one payload that notices damage.

    magic, format number, sha256 of all that follows, length of the header, header (JSON, deflated),
    payload

Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from esnac import files
from esnac.errors import WeightsError

MAGIC = b"esnac\x00q\n"
FORMAT = 1
_HEAD = struct.Struct("<8sH32s")
_LENGTH = struct.Struct("<I")
#: Bytes that a header may unfold to; that of a network of a thousand layers has half a million.
_MOST_HEADER = 1 << 26


def seal(header: dict[str, Any], payload: bytes) -> bytes:
    """The file's bytes. `header` is plain JSON data."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    deflated = zlib.compress(text.encode(), 9)
    rest = _LENGTH.pack(len(deflated)) + deflated + payload
    return _HEAD.pack(MAGIC, FORMAT, hashlib.sha256(rest).digest()) + rest


def unseal(data: bytes, where: str) -> tuple[dict[str, Any], memoryview]:
    """Header and payload. Raises WeightsError, in which `where` names the file."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise WeightsError(f"{where} is no packed student. Give a file that quantisation wrote.")
    if len(data) < _HEAD.size + _LENGTH.size:
        raise damaged(where, f"only {len(data)} bytes")
    _, number, digest = _HEAD.unpack_from(data)
    if number != FORMAT:
        raise WeightsError(
            f"{where} has format {number}, this version reads {FORMAT}. Use the version of esnac "
            "that wrote it, or pack the student again."
        )
    rest = memoryview(data)[_HEAD.size :]
    if hashlib.sha256(rest).digest() != digest:
        raise damaged(where, "its checksum is another")
    (length,) = _LENGTH.unpack_from(rest)
    rest = rest[_LENGTH.size :]
    try:
        unfold = zlib.decompressobj()
        header = json.loads(unfold.decompress(rest[:length], _MOST_HEADER))
        if not isinstance(header, dict) or not unfold.eof:
            raise ValueError("no table")
    except (zlib.error, ValueError, RecursionError) as error:
        raise damaged(where, f"its header cannot be read: {error}") from None
    return header, rest[length:]


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises WeightsError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {files.reason(error)}.") from None


def damaged(where: str, reason: object) -> WeightsError:
    return WeightsError(
        f"{where} is truncated or damaged ({reason}). Copy it again, or pack the student again."
    )
