from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esnac.deployment import mnn
from esnac.deployment.onnx_export import export
from esnac.errors import EsnacError
from esnac.graphs.network import StudentNetwork

# Not imported here: it prints.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("onnx_extra"),
    pytest.mark.skipif(find_spec("MNN") is None, reason="needs the extra mnn"),
]


def test_digits(
    trained: StudentNetwork, digits: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """float32 as torch; 8 bits within a point, in less than 0.4 of the bytes; nothing printed."""
    names = ("a.onnx", "a.mnn", "a.int8.mnn")
    source, exact, coarse = (tmp_path / name for name in names)
    export(trained, source, (1, 16, 16), examples=digits.test[:32])
    mnn.convert(source, exact)
    low, high = digits.train.min().item(), digits.train.max().item()
    images = ((digits.train - low) * 255 / (high - low)).round().to(torch.uint8)[:128]
    std = 1 / (high - low)
    mnn.quantize(exact, coarse, images.numpy(), [-low * std], [std])
    inputs = digits.test.numpy()
    values, seconds = mnn.run(exact, inputs, threads=1, batches=(1, 64))
    in_8_bits, slower = mnn.run(coarse, inputs, threads=1, batches=(1, 64))
    printed = capfd.readouterr()
    with torch.no_grad():
        expected = trained(digits.test)
    difference = np.abs(values - expected.numpy()).max()
    accuracies = [digits.accuracy(torch.from_numpy(x)) for x in (expected.numpy(), in_8_bits)]
    ratio = coarse.stat().st_size / exact.stat().st_size
    assert printed == ("", "")
    print(f"mnn: {difference:.2g} to torch; {accuracies}; {ratio:.3f}x; {seconds}, {slower}")
    assert difference <= 1e-4
    assert abs(accuracies[0] - accuracies[1]) <= 0.01
    assert ratio < 0.4
    assert list(seconds) == [1, 64]
    assert 0 < seconds[1] < seconds[64]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(EsnacError, match="MNN"):
        mnn.convert(tmp_path / "a.onnx", tmp_path / "a.mnn")
    with pytest.raises(EsnacError, match="MNN failed"):
        mnn.run(tmp_path / "a.onnx", np.zeros((1, 1, 4, 4), np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_images_that_the_quantiser_cannot_take(tmp_path: Path) -> None:
    images = np.zeros((5, 2, 4, 4), np.uint8)
    with pytest.raises(EsnacError, match="1 or 3 channels; got 5 of 2"):
        mnn.quantize(tmp_path / "a.mnn", tmp_path / "b.mnn", images, [0.5] * 2, [0.5] * 2)


def test_a_network_that_the_quantiser_spoils(
    resnet20: StudentNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check compares logits; here any difference is too much, whatever MNN makes of it."""
    monkeypatch.setattr(mnn, "_FARTHEST", 0.0)
    source, exact, coarse = (tmp_path / name for name in ("a.onnx", "a.mnn", "b.mnn"))
    export(resnet20, source, (3, 32, 32))
    mnn.convert(source, exact)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8).numpy()
    with pytest.raises(EsnacError, match="does not keep this network"):
        mnn.quantize(exact, coarse, images, [0.5] * 3, [0.3] * 3)
    assert not coarse.exists()
