"""CIFAR: on made-up files, and on the real ones where they are."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from esnac import data
from esnac.data import DataSettings
from esnac.errors import DataError

ROOT = Path(os.environ.get("ESNAC_DATA") or Path(__file__).parents[3] / "shared" / "data")


def real(name: str) -> Path:
    if not (ROOT / name / "train.parquet").is_file():
        pytest.skip(f"no {name}/train.parquet in {ROOT}; name its folder with $ESNAC_DATA")
    return ROOT


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_limited_real_images(name: str, classes: int) -> None:
    own = data.load(name, real(name), DataSettings(limit=1000))
    assert (len(own.train), len(own.validation), len(own.test)) == (900, 100, 10_000)
    assert (own.num_classes, own.input_shape) == (classes, (3, 32, 32))
    assert (own.padding, own.flip) == (4, True)
    for part in (own.train, own.validation, own.test):
        sizes = torch.bincount(part.labels, minlength=classes)
        assert sizes.unique().tolist() == [len(part) // classes]
    # 10,000 test images: the mean of such a sample is within 0.01 of the training images'
    pixels = own.test.images.float().mean((0, 2, 3)) / 255
    assert (pixels - torch.tensor(own.mean)).abs().max() < 0.01
    assert (pixels[0] > pixels[2]).item()  # red before blue: channels are not swapped


@pytest.mark.slow
def test_the_published_figures_are_those_of_all_training_images() -> None:
    settings = DataSettings()
    own = data.load("cifar10", real("cifar10"), settings)
    assert (len(own.train), len(own.validation), len(own.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(own.validation.labels).tolist() == [500] * 10
    assert own.class_names[0] == "airplane"
    pixels = torch.cat([own.train.images, own.validation.images]).transpose(0, 1).flatten(1)
    assert pixels.double().mean(1).div(255).tolist() == pytest.approx(own.mean, abs=1e-3)
    assert pixels.double().std(1).div(255).tolist() == pytest.approx(own.std, abs=2e-3)


def test_training_images_are_counted_without_decoding() -> None:
    assert data.count_training_images("cifar100", real("cifar100"), DataSettings()) == 45_000


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    root = tmp_path / "root"
    with pytest.raises(DataError) as caught:
        data.load("cifar10", root, DataSettings())
    message = str(caught.value)
    for part in (
        str(root / "cifar10"),
        str(root / "cifar-10-batches-py"),
        "no network",
        "--data",
        "$ESNAC_DATA",
        "python -c",
    ):
        assert part in message
    assert "\n" not in message
    assert not root.exists()  # nothing half-written


def test_a_failed_extraction_leaves_the_archive_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esnac.data.vision import torchvision

    torchvision()
    from torchvision.datasets import CIFAR10

    archive, folder = tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-10-batches-py"
    archive.write_bytes(b"images")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(b"images").hexdigest())

    def fill_the_disk(*_: Any) -> None:
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", fill_the_disk)
    for _ in range(2):
        with pytest.raises(DataError, match="No space left on device"):
            data.load("cifar10", tmp_path, DataSettings())
        assert archive.read_bytes() == b"images"
        assert not folder.exists()


def test_torchvision_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of torchvision with 20 images each; only their checksums are waived."""
    from esnac.data.vision import torchvision

    torchvision()
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = [index % 10 for index in range(20)]
    pixels = numpy.repeat(numpy.arange(20, dtype=numpy.uint8)[:, None], 3072, 1)
    pixels[:, 1024:2048] = 77  # green
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = [f"name {index}" for index in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    own = data.load("cifar10", tmp_path, DataSettings())
    assert (len(own.train), len(own.validation), len(own.test)) == (90, 10, 20)
    assert own.class_names == tuple(names)
    assert own.test.images[:, 0, 5, 6].tolist() == list(range(20))
    assert own.test.images[:, 1].unique().tolist() == [77]
    assert own.test.labels.tolist() == labels


def test_a_damaged_torchvision_folder(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match=r"cifar-100-python is not the CIFAR100 of torchvision"):
        data.load("cifar100", tmp_path, DataSettings())
