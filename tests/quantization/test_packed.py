"""The file that is deployed: runs as the student it was made from, is small, notices damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError, WeightsError
from esnac.graphs.masks import attach_masks, effective_weights
from esnac.graphs.network import Preparation, StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks import build
from esnac.quantization import container, packed
from esnac.quantization.attach import INPUT, Plan, attach, calibrate, is_quantized, weight_codes
from esnac.quantization.description import activation_settings, weight_settings
from esnac.quantization.packing import unpack
from esnac.quantization.size import size_report

SIZE = (1, 8, 8)


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(12 * 9, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.relu(self.bn(self.conv1(x))))
        return self.fc(self.flatten(x))


def student() -> StudentNetwork:
    torch.manual_seed(0)
    network = StudentNetwork(trace(Small(10), SIZE))
    network(images(64))  # the norm gathers statistics
    return network.eval()


def images(count: int = 16, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def quantized(
    weights: dict[str, Any], activations: dict[str, Any] | None = None, sparse: bool = False
) -> StudentNetwork:
    network = student()
    if sparse:
        keep = torch.rand(12, 8, 3, 3, generator=torch.Generator().manual_seed(2)) > 0.8
        attach_masks(network, {"conv2.weight": keep})
    inputs = {} if activations is None else {"fc": activation_settings(**activations)}
    names = ("conv2.weight", "fc.weight")
    attach(network, Plan({name: weight_settings(**weights) for name in names}, inputs))
    if inputs:
        calibrate(network, [images(64)])
    return network.eval()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ({"method": "uniform", "bits": bits, "rows": rows}, None)
        for bits in (1, 2, 2.4, 3, 4, 8)
        for rows in ("tensor", "channel", 256)
    ]
    + [
        ({"method": "uniform", "bits": 4, "scaling": "absmax"}, None),
        ({"method": "lsq", "bits": 4}, {"method": "lsq", "bits": 4}),
        ({"method": "lsq", "bits": 2, "rows": "channel"}, {"method": "pact", "bits": 4}),
        ({"method": "dorefa", "bits": 4}, {"method": "dorefa", "bits": 4}),
        ({"method": "minmax", "bits": 4}, {"method": "minmax", "bits": 4}),
    ],
)
def test_outputs_are_bitwise_those_of_the_student(
    weights: dict[str, Any], activations: dict[str, Any] | None, sparse: bool, tmp_path: Path
) -> None:
    network = quantized(weights, activations, sparse)
    size = packed.write(tmp_path / "student.packed", network)
    assert size == (tmp_path / "student.packed").stat().st_size
    again = packed.read(tmp_path / "student.packed")
    assert not again.training
    assert again.graph == network.graph
    assert is_quantized(again) == (activations is not None)
    assert torch.equal(again(images()), network(images()))
    before, after = effective_weights(network), effective_weights(again)
    for name in ("conv2.weight", "fc.weight", "conv1.weight", "bn.weight"):
        assert torch.equal(before[name], after[name])


def test_a_student_without_quantisers_and_its_preparation(tmp_path: Path) -> None:
    network = student()
    network.preparation = Preparation((0.5,), (0.25,), ("zero", "one"))
    packed.write(tmp_path / "x", network)
    again = packed.read(tmp_path / "x")
    assert again.preparation == network.preparation
    assert torch.equal(again(images()), network(images()))
    dense = (tmp_path / "x").stat().st_size
    with torch.no_grad():
        network.fc.weight[torch.rand(10, 108) < 0.8] = 0
    assert packed.write(tmp_path / "x", network) < dense - 0.7 * 4 * 1080
    assert torch.equal(packed.read(tmp_path / "x")(images()), network(images()))


@pytest.mark.parametrize(("name", "whole"), [("resnet20", 1.25), ("wrn16_4", 1.10)])
def test_two_bits_cost_little_more_than_their_entropy(
    name: str, whole: float, tmp_path: Path
) -> None:
    """What is not quantised (norms, biases) is stored as it is: in ResNet-20, with 0.27 M weights,
    it is a sixth of the file, in WRN-16-4, with 2.7 M, little."""
    torch.manual_seed(0)
    network = StudentNetwork(trace(build(name, 10), (3, 16, 16))).eval()
    names = [name for name, w in effective_weights(network).items() if w.dim() > 1]
    with torch.no_grad():  # as after training; ones and zeros would be short
        for tensor in network.state_dict().values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    settings = weight_settings("uniform", bits=2, rows=256)
    attach(network, Plan(dict.fromkeys(names, settings), {}))
    size = packed.write(tmp_path / "student.packed", network)
    report = size_report(tmp_path / "student.packed")
    assert report.total == size
    assert sorted(row.name for row in report.rows if row.levels) == sorted(names)
    least = sum(row.entropy + row.scales for row in report.rows if row.levels)
    others = sum(row.stored for row in report.rows if row.levels is None)
    codes = sum(row.stored for row in report.rows if row.levels)
    print(
        f"{name}: file {size} B, {size / least:.4f} x entropy and scales; codes and scales alone "
        f"{codes / least:.4f} x; norms and biases {others} B"
    )
    assert codes <= 1.02 * least
    assert size <= whole * least
    assert size <= 1.10 * (least + others)
    assert report.header + codes + others == size


def test_an_activation_quantiser_without_a_range(tmp_path: Path) -> None:
    network = student()
    attach(network, Plan({}, {"fc": activation_settings("lsq", bits=4)}))
    with pytest.raises(EsnacError, match=r"layer 'fc' has no range yet.*calibrate"):
        packed.write(tmp_path / "x", network)
    assert not (tmp_path / "x").exists()


def test_truncated_and_changed_files(tmp_path: Path) -> None:
    path = tmp_path / "student.packed"
    packed.write(path, quantized({"method": "lsq", "bits": 4}, {"method": "lsq", "bits": 4}))
    data = path.read_bytes()
    for wrong in (b"", data[:5], data[:60], data[:-1], data[:-40] + bytes(40), data + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(WeightsError, match=r"student.packed.*(Copy it again|Give a file)"):
            packed.read(path)
    path.unlink()
    with pytest.raises(WeightsError, match="Cannot read .*student.packed: no such file"):
        packed.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, tensors: about.pop("architecture"), "architecture"),
        (lambda about, tensors: about["architecture"]["layers"].pop(), "another network"),
        (lambda about, tensors: about["quantization"].update(activations={}), "another network"),
        (lambda about, tensors: about["quantization"].update(format=9), "format 9"),
        (lambda about, tensors: about.update(preparation={"x": 1}), "not iterable|unexpected"),
        (lambda about, tensors: tensors[0].update(name="other.weight"), "another network"),
        (lambda about, tensors: tensors[0].update(shape=[8, 3, 3]), "another network"),
        (lambda about, tensors: tensors[0].update(dtype="int64"), "floating point"),
    ],
)
def test_a_file_whose_parts_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    """Its checksum is right, as somebody may have made it."""
    path = tmp_path / "student.packed"
    packed.write(path, quantized({"method": "lsq", "bits": 4}, {"method": "lsq", "bits": 4}))
    header, payload = container.unseal(path.read_bytes(), "x")
    change(header["about"], header["tensors"])
    path.write_bytes(container.seal(header, bytes(payload)))
    with pytest.raises(WeightsError, match=message):
        packed.read(path)


def test_what_is_left_out(tmp_path: Path) -> None:
    network = quantized({"method": "lsq", "bits": 4}, {"method": "lsq", "bits": 4})
    packed.write(tmp_path / "x", network)
    tensors, _ = unpack((tmp_path / "x").read_bytes())
    assert not [name for name in tensors if "original" in name or "num_batches" in name]
    assert {name for name in tensors if not isinstance(tensors[name], torch.Tensor)} == set(
        weight_codes(network)
    )
    assert [name for name in tensors if INPUT in name]
