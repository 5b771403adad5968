"""The plain digits network of 65,834 parameters, in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esnac.deployment import onnx_int8, onnx_session
from esnac.deployment.onnx_export import export
from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork

pytestmark = pytest.mark.usefixtures("onnx_extra")


@pytest.mark.slow
def test_digits(trained: StudentNetwork, digits: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    assert export(trained, source, (1, 16, 16), examples=digits.test) <= 1e-4
    assert onnx_int8.quantize(source, target, digits.train[:32].numpy()) == 4
    exact, coarse = (
        torch.from_numpy(onnx_session.run(onnx_session.open_session(path), digits.test.numpy()))
        for path in (source, target)
    )
    accuracy, in_8_bits = digits.accuracy(exact), digits.accuracy(coarse)
    agreement = (exact.argmax(dim=1) == coarse.argmax(dim=1)).double().mean().item()
    ratio = target.stat().st_size / source.stat().st_size
    print(f"digits: {accuracy:.4f} -> {in_8_bits:.4f}, agreement {agreement:.4f}, {ratio:.3f}x")
    assert accuracy > 0.95
    assert abs(accuracy - in_8_bits) <= 0.01
    assert agreement >= 0.99
    assert ratio < 0.40
    assert onnx_session.optimised_operators(target)["QLinearConv"] == 4


@pytest.mark.slow
def test_resnet20(resnet20: StudentNetwork, tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export(resnet20, source, (3, 32, 32))
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    assert onnx_int8.quantize(source, target, images) == 21
    ratio = target.stat().st_size / source.stat().st_size
    print(f"resnet20: {target.stat().st_size} of {source.stat().st_size} bytes, {ratio:.3f}x")
    assert ratio < 0.40


def test_norms_that_became_convolutions_are_quantised(
    pre_activation: StudentNetwork, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export(pre_activation, source, (1, 8, 8))
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    assert onnx_int8.quantize(source, target, images) == 5
    assert capfd.readouterr() == ("", "")
    first = target.read_bytes()
    onnx_int8.quantize(source, target, images)
    assert target.read_bytes() == first, "the same images give the same file"
    with pytest.raises(EsnacError, match="No images"):
        onnx_int8.quantize(source, target, np.zeros((0, 1, 8, 8), np.float32))


def test_a_file_that_stays_float_is_refused(
    pre_activation: StudentNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export(pre_activation, source, (1, 8, 8))
    monkeypatch.setattr(
        onnx_int8, "_quantize", lambda source, place, _: place.write_bytes(source.read_bytes())
    )
    with pytest.raises(EsnacError, match="Only 0 of 5 convolutions"):
        onnx_int8.quantize(source, target, np.zeros((1, 1, 8, 8), np.float32))
    assert not target.exists()
