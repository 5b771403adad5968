from __future__ import annotations

import hashlib
import json
import zlib

import pytest

from esnac.errors import WeightsError
from esnac.quantization import container

HEADER = {"about": {"layers": [1, 2]}, "tensors": []}


def test_round_trip() -> None:
    header, payload = container.unseal(container.seal(HEADER, b"payload"), "x")
    assert header == HEADER
    assert bytes(payload) == b"payload"


def test_every_cut_and_every_changed_byte_is_noticed() -> None:
    data = container.seal(HEADER, b"payload")
    for end in range(len(data)):
        with pytest.raises(WeightsError, match=r"Copy it again|no packed student"):
            container.unseal(data[:end], "x")
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(WeightsError, match=r"Copy it again|no packed student|format"):
            container.unseal(bytes(changed), "x")
    with pytest.raises(WeightsError, match="checksum"):
        container.unseal(data + b"more", "x")


def test_errors_name_the_file_and_what_to_do() -> None:
    data = container.seal(HEADER, b"payload")
    with pytest.raises(WeightsError, match=r"^a/b is truncated or damaged .*pack the student"):
        container.unseal(data[:-1], "a/b")
    with pytest.raises(WeightsError, match="a/b has format 7, this version reads 1"):
        container.unseal(data[:8] + b"\7\0" + data[10:], "a/b")


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b"\xff", b"[" * 100_000, json.dumps({"a": 1}).encode()[:-1]]
)
def test_headers_that_are_none(text: bytes) -> None:
    with pytest.raises(WeightsError, match="header"):
        container.unseal(resealed(zlib.compress(text)), "x")


def test_a_header_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_MOST_HEADER", 1000)
    text = json.dumps({"a": " " * 2000}).encode()
    with pytest.raises(WeightsError, match="header"):
        container.unseal(resealed(zlib.compress(text)), "x")


def resealed(deflated: bytes) -> bytes:
    """A file with this header and a checksum that is right."""
    rest = container._LENGTH.pack(len(deflated)) + deflated
    digest = hashlib.sha256(rest).digest()
    return container._HEAD.pack(container.MAGIC, container.FORMAT, digest) + rest
