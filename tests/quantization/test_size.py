from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.networks.wide_resnet import WideResNet
from esnac.quantization.entropy import count_codes, huffman_bits
from esnac.quantization.packing import Stored, pack
from esnac.quantization.size import size_report
from esnac.quantization.uniform import encode_uniform
from esnac.settings import to_plain


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tensors() -> dict[str, Stored]:
    masked = encode_uniform(normal(64, 64, 3, 3), levels=4, rows=256)
    return {
        "a.weight": encode_uniform(normal(50, 40), levels=16, rows="channel"),
        "b.weight": replace(masked, keep=normal(64, 64, 3, 3).abs() > 1),
        "b.bias": normal(64),
        "c.weight": encode_uniform(normal(100), levels=6, rows="tensor"),
    }


def test_the_parts_add_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "student.packed"
    path.write_bytes(pack(tensors(), {"note": "x" * 50}))
    report = size_report(path)
    assert report.header + sum(row.stored for row in report.rows) == report.total
    assert report.total == path.stat().st_size
    assert report.header < 500
    assert [row.name for row in report.rows] == list(tensors())
    totals = report.totals()
    assert totals["stored"] == report.total - report.header
    assert totals["raw"] == 4 * (2000 + 64 * 64 * 9 + 64 + 100)
    assert json.loads(json.dumps(to_plain(report)))["rows"][0]["levels"] == 16


def test_rows() -> None:
    a, b, bias, c = size_report(pack(tensors(), {})).rows
    assert (a.numel, a.levels, a.raw, a.fixed, a.scales, a.mask) == (2000, 16, 8000, 1000, 400, 0)
    assert a.entropy <= a.huffman <= a.entropy * 1.02
    assert b.mask <= 64 * 64 * 9 / 8
    assert b.fixed == pytest.approx(0.317 * 64 * 64 * 9 / 4, rel=0.02)  # what the mask leaves
    assert (bias.levels, bias.stored, bias.raw) == (None, 256, 256)
    assert c.codes <= 33  # 2.6 bits each
    assert c.fixed == 38  # 3 bits each
    assert c.table == 0


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(EsnacError, match="Cannot read .*student.packed: no such file"):
        size_report(tmp_path / "student.packed")


@pytest.mark.slow
def test_wide_resnet_22_8_at_four_bits() -> None:
    """Published: 8.2 MB at 4 bits, by a Huffman code and float32 scales of buckets of 256.

    Its 17,210,564 parameters include a bias for each convolution, which this network has not; the
    weights are Gaussian. Known for these: 8.15 MB.
    """
    network = WideResNet(22, 8, num_classes=100, in_channels=3)
    convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters + sum(layer.out_channels for layer in convs) == 17_210_564
    sample = encode_uniform(normal(1 << 20), levels=16, rows=256)
    huffman = huffman_bits(count_codes(sample.codes.numpy(), 16))
    assert 17_210_564 * (huffman / 8 + 8 / 256) / 1e6 == pytest.approx(8.15, abs=0.05)
    stored = size_report(pack({"w": sample}, {}))
    assert stored.total / (1 << 20) * 17_210_564 / 1e6 == pytest.approx(8.15, abs=0.05)
