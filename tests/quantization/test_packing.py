from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from esnac.errors import EsnacError, WeightsError
from esnac.quantization import bits, container
from esnac.quantization.codebook import encode_points, scaled_values, start_points
from esnac.quantization.codes import Codes, decode
from esnac.quantization.packing import Stored, entries, pack, unpack
from esnac.quantization.uniform import encode_uniform


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def again(stored: Stored) -> Any:
    found, about = unpack(pack({"w": stored}, {"note": [1]}))
    assert about == {"note": [1]}
    assert list(found) == ["w"]
    return found["w"]


def same(first: Codes, second: Codes) -> bool:
    """All parts bit for bit; codes where they count."""
    for part in ("table", "scale", "offset", "keep"):
        a, b = getattr(first, part), getattr(second, part)
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            return False
    return first.rows == second.rows and torch.equal(decode(first), decode(second))


@pytest.mark.parametrize("rows", ["tensor", "channel", 256])
@pytest.mark.parametrize("levels", [2, 4, 5, 6, 8, 16, 256])
def test_codes_come_back_bit_for_bit(levels: int, rows: str | int) -> None:
    codes = encode_uniform(normal(17, 13, 3, 3), levels=levels, rows=rows)
    found = again(codes)
    assert torch.equal(found.codes, codes.codes)
    assert same(found, codes)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 100_003])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_any_tail(bits: int, count: int) -> None:
    w = normal(count)
    codes = encode_uniform(w, levels=2**bits, rows=256)
    assert torch.equal(decode(again(codes)), decode(codes))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_masks(share: float) -> None:
    w = normal(40, 50)
    keep = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) >= share
    for scaling, levels in (("linear", 4), ("absmax", 15)):
        codes = replace(encode_uniform(w, levels=levels, rows=64, scaling=scaling), keep=keep)
        found = again(codes)
        assert same(found, codes)
        assert not found.codes[~keep].any()


def test_codebooks() -> None:
    w = normal(3000)
    points = start_points(scaled_values(w, 256), 4, "kmeans")
    assert same(again(encode_points(w, points, 256)), encode_points(w, points, 256))


def test_one_symbol() -> None:
    codes = encode_uniform(torch.full((5000,), 0.25), levels=4, rows="tensor")
    assert not codes.codes.any()
    assert (decode(again(codes)) == 0.25).all()
    assert len(pack({"w": codes}, {})) < 250
    lonely = Codes(torch.zeros(9, dtype=torch.uint8), torch.ones(1), torch.ones(1, 1), None, 9)
    assert same(again(lonely), lonely)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_plain_tensors(dtype: torch.dtype) -> None:
    for shape in [(), (0,), (3, 0), (7, 5)]:
        tensor = (normal(*shape) * 3).to(dtype)
        found = again(tensor)
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


def test_sparse_plain_tensors_are_short_and_keep_signed_zeros_and_nan() -> None:
    w = torch.where(torch.rand(100, 100) < 0.8, torch.zeros(()), normal(100, 100))
    w[0, :4] = torch.tensor([-0.0, float("nan"), float("inf"), 0.0])
    found = again(w)
    assert torch.equal(found.view(torch.int32), w.view(torch.int32))
    assert len(pack({"w": w}, {})) < 0.27 * 40_000


def test_sizes_of_two_bits() -> None:
    """100,003 weights, buckets of 256: 25,001 B of codes and 3,128 B of scales, 2.250 bits each."""
    codes = encode_uniform(normal(100_003), levels=4, rows=256)
    assert bits.packed_size(100_003, 4) == 25_001
    data = pack({"w": codes}, {})
    ((_, parts),) = entries(*container.unseal(data, "x"))
    scales = len(parts["scale"]) + len(parts["offset"])
    assert scales == 3_128
    assert 8 * (25_001 + scales) / 100_003 == pytest.approx(2.25, abs=0.0005)
    assert len(parts["codes"]) < 1.015 * 17_204  # the entropy; 18,372 by zlib, 20,089 by Huffman
    assert parts["table"] == b""


@pytest.mark.parametrize(("first", "levels"), [(-8, 16), (-128, 256), (0, 16), (-2, 4)])
def test_a_table_of_integers_is_one_byte(first: int, levels: int) -> None:
    table = torch.arange(first, first + levels, dtype=torch.float32)
    codes = Codes(torch.arange(levels).to(torch.uint8), table, torch.ones(1, 1), None, "tensor")
    assert same(again(codes), codes)
    ((_, parts),) = entries(*container.unseal(pack({"w": codes}, {}), "x"))
    assert len(parts["table"]) == 1


def test_scales_that_float16_holds_take_half() -> None:
    w = normal(100_003)
    half = encode_uniform(w, levels=4, rows=256, scales="float16")
    assert same(again(half), half)
    ((_, parts),) = entries(*container.unseal(pack({"w": half}, {}), "x"))
    assert len(parts["scale"]) + len(parts["offset"]) == 1_564
    assert pytest.approx(2.125, abs=0.0005) == 8 * (25_001 + 1_564) / 100_003


def test_codes_beyond_their_table() -> None:
    codes = Codes(
        torch.tensor([0, 4], dtype=torch.uint8), torch.zeros(4), torch.ones(1, 1), None, "tensor"
    )
    with pytest.raises(EsnacError, match="w has codes beyond its 4 levels"):
        pack({"w": codes}, {})
    with pytest.raises(EsnacError, match="complex"):
        pack({"w": torch.zeros(1, dtype=torch.complex64)}, {})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("shape",), [10**12]),
        (("shape",), [-3, -100]),
        (("shape",), [10**30, 0]),
        (("shape",), "300"),
        (("levels",), 3),
        (("levels",), 0),
        (("levels",), 10**9),
        (("rows",), 0),
        (("rows",), 100),
        (("rows",), {}),
        (("parts", "codes", "size"), 10**12),
        (("parts", "codes", "size"), -1),
        (("parts", "scale", "size"), 0),
        (("parts", "codes", "as"), "zip"),
        (("parts", "scale", "as"), "text"),
        (("parts", "scale", "as"), "float64"),
        (("parts", "table", "as"), "symmetric"),
        (("parts", "table", "as"), "integers"),
        (("parts", "codes"), None),
        (("parts",), {}),
        (("name",), ...),
    ],
)
def test_a_header_that_lies(path: tuple[str, ...], value: object) -> None:
    """The checksum is right, as somebody may have made it; sizes are checked all the same."""
    data = pack({"w": encode_uniform(normal(300), levels=4, rows="tensor")}, {})
    header, payload = container.unseal(data, "x")
    place = header["tensors"][0]
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(WeightsError, match=r"damaged.*Copy it again"):
        unpack(container.seal(header, bytes(payload)), "x")


def test_truncated_or_changed_files() -> None:
    data = pack({"w": encode_uniform(normal(3000), levels=4, rows=256)}, {})
    for end in range(0, len(data), 97):
        with pytest.raises(WeightsError):
            unpack(data[:end])
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 64
        with pytest.raises(WeightsError):
            unpack(bytes(changed))
