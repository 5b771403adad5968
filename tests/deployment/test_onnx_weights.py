from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esnac.deployment import onnx_session
from esnac.deployment.onnx_export import export
from esnac.deployment.onnx_weights import IntegerWeight, pack
from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs.network import StudentNetwork

pytestmark = pytest.mark.usefixtures("onnx_extra")


def rounded(weight: torch.Tensor, bits: int, per_channel: bool = True) -> IntegerWeight:
    """Nearest integers; the largest weight of a channel is the largest positive code."""
    values = weight.detach().numpy()
    most = np.abs(values.reshape(len(values) if per_channel else 1, -1)).max(axis=1)
    scale = (most / (2 ** (bits - 1) - 1)).astype(np.float32)
    spread = scale.reshape(-1, *[1] * (values.ndim - 1))
    return IntegerWeight(np.round(values / spread).astype(np.int8), scale, bits)


def put(module: nn.Module, weight: IntegerWeight) -> None:
    spread = torch.from_numpy(weight.scale).view(-1, *[1] * (weight.codes.ndim - 1))
    assert isinstance(module.weight, nn.Parameter)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight.codes).float() * spread)


def test_one_large_convolution(tmp_path: Path) -> None:
    """589,824 weights and 256 scales of 4 bytes: 590,848, 295,936 and 148,480 bytes of content."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.Flatten())
    trained = module[0].weight.detach().clone()
    examples = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0))
    size = {}
    for bits in (8, 4, 2):
        weight = rounded(trained, bits)
        put(module[0], weight)
        export(module, tmp_path / "float.onnx", (256, 8, 8), examples=examples)
        path = tmp_path / f"{bits}.onnx"
        pack(tmp_path / "float.onnx", path, {"0.weight": weight})
        size[bits] = path.stat().st_size
        with torch.no_grad():
            expected = module(examples).numpy()
        found = onnx_session.run(onnx_session.open_session(path), examples.numpy())
        difference = np.abs(found - expected).max()
        print(f"{bits} bits: {size[bits]} bytes, {difference:.1g} to torch")
        assert difference <= 1e-4
        assert 589_824 * bits / 8 + 1024 < size[bits] < 589_824 * bits / 8 + 2048
    print(f"2 bits are 1/{size[8] / size[2]:.3f} of 8")
    assert size[2] <= size[8] / 3.9


def test_folded_norms_go_into_the_scales(pre_activation: StudentNetwork, tmp_path: Path) -> None:
    """conv1 has norm2 folded in, conv2 and the rest have none; one scale each but for conv1. A
    negative factor of a norm makes a negative scale."""
    import onnx
    from onnx import numpy_helper

    with torch.no_grad():
        pre_activation.get_parameter("norm2.weight")[0] *= -1
    weights = {}
    for name, bits in (("stem", 8), ("conv1", 2), ("conv2", 4), ("fc", 4)):
        module = pre_activation.get_submodule(name)
        assert isinstance(module.weight, torch.Tensor)
        weights[f"{name}.weight"] = rounded(module.weight, bits, per_channel=False)
        put(module, weights[f"{name}.weight"])
    source, target = tmp_path / "float.onnx", tmp_path / "packed.onnx"
    examples = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    export(pre_activation, source, (1, 8, 8), examples=examples)
    pack(source, target, weights)
    with torch.no_grad():
        expected = pre_activation(examples).numpy()
    found = onnx_session.run(onnx_session.open_session(target), examples.numpy())
    assert np.abs(found - expected).max() <= 1e-4
    held = {t.name: t for t in onnx.load(target).graph.initializer}
    types = {name: held[f"{name}.weight_codes"].data_type for name in ("conv1", "conv2", "stem")}
    assert types == {
        "conv1": onnx.TensorProto.INT2,
        "conv2": onnx.TensorProto.INT4,
        "stem": onnx.TensorProto.INT8,
    }
    norm = pre_activation.norm2
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    scale = numpy_helper.to_array(held["conv1.weight_scale"])
    assert scale == pytest.approx((factor.detach() * weights["conv1.weight"].scale[0]).numpy())
    assert numpy_helper.to_array(held["fc.weight_scale"]).shape == ()


def test_what_cannot_be_packed(pre_activation: StudentNetwork, tmp_path: Path) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "packed.onnx"
    export(pre_activation, source, (1, 8, 8))
    weight = rounded(pre_activation.fc.weight, 4)
    with pytest.raises(EsnacError, match="Quantise the student first"):
        pack(source, target, {})
    with pytest.raises(UnknownNameError, match=r"Did you mean 'fc\.weight'"):
        pack(source, target, {"fc.weigth": weight})
    with pytest.raises(EsnacError, match="levels around zero"):
        pack(source, target, {"fc.weight": weight})
    with pytest.raises(EsnacError, match=r"\(10, 8\) in the ONNX file and \(8, 6, 3, 3\)"):
        pack(source, target, {"fc.weight": rounded(pre_activation.conv2.weight, 4)})
    assert not target.exists()


@pytest.mark.parametrize(
    ("codes", "scale", "bits", "message"),
    [
        (np.zeros((2, 3), np.int8), np.ones(2, np.float32), 3, "2, 4 or 8 bits; got 3"),
        (np.full((2, 3), 2, np.int8), np.ones(2, np.float32), 2, "to 2 do not fit 2 bits"),
        (np.full((2, 3), -9, np.int8), np.ones(2, np.float32), 4, "from -9"),
        (np.zeros((2, 3), np.int64), np.ones(2, np.float32), 2, "Codes are int8"),
        (np.zeros((2, 3), np.int8), np.ones(3, np.float32), 2, "buckets have no form"),
    ],
)
def test_codes_and_scales_are_checked(
    codes: np.ndarray, scale: np.ndarray, bits: int, message: str
) -> None:
    with pytest.raises(EsnacError, match=message):
        IntegerWeight(codes, scale, bits)
