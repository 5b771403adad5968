from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from esnac.data import DataSet, DataSettings, ImageSet, from_tensors
from esnac.deployment.onnx_export import export
from esnac.deployment.runtime_table import fraction_right, inputs_of, logits, table
from esnac.errors import DataError
from esnac.graphs.network import StudentNetwork
from esnac.training.evaluate import accuracy


@pytest.fixture(scope="module")
def noise() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return from_tensors((images, torch.arange(120) % 10), None, DataSettings())


def test_a_row_for_torch_and_each_file(
    pre_activation: StudentNetwork, noise: DataSet, tmp_path: Path, onnx_extra: None
) -> None:
    path = tmp_path / "a.onnx"
    export(pre_activation, path, (1, 8, 8))
    threads = torch.get_num_threads()
    rows = table(pre_activation, {"onnx": path}, noise, batches=(1, 3))
    assert torch.get_num_threads() == threads
    assert [row.runtime for row in rows] == ["torch", "onnx"]
    own, exported = rows
    assert (own.path, own.bytes, own.agreement, own.difference) == (None, None, 1.0, 0.0)
    assert own.accuracy == exported.accuracy == accuracy(pre_activation, noise.test, noise)
    assert exported.bytes == path.stat().st_size
    assert (exported.agreement, exported.difference <= 1e-4) == (1.0, True)
    for row in rows:
        assert list(row.seconds) == [1, 3]
        assert min(row.seconds.values()) > 0
    assert list(exported.to_plain()["seconds"]) == ["1", "3"]
    values = logits(path, inputs_of(noise.test, noise))
    assert fraction_right(values, noise.test) == exported.accuracy


def test_accuracy_by_hand() -> None:
    images = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]))
    values = np.array([[2, 1], [0, 3], [5, 1], [1, 0]], dtype=np.float32)
    assert fraction_right(values, images) == 0.75


def test_no_images_are_an_error(noise: DataSet) -> None:
    with pytest.raises(DataError, match="no images"):
        inputs_of(noise.test.subset(torch.arange(0)), noise)
