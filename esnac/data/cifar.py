"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 images of 32x32 (Krizhevsky, 2009).

Looked for under the data root as Parquet, then as torchvision keeps it, then downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esnac.data.parquet import find, read_split
from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source
from esnac.data.vision import torchvision
from esnac.errors import DataError


@dataclass(frozen=True)
class _Kind:
    folder: str  # of the Parquet files
    layout: str  # torchvision's folder
    archive: str  # what torchvision downloads
    class_name: str  # in torchvision.datasets
    num_classes: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]


# Mean and std of the 50,000 original training images.
_CIFAR10 = _Kind(
    "cifar10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    "CIFAR10",
    10,
    ((0.49140, 0.48216, 0.44653), (0.24703, 0.24348, 0.26159)),
)
_CIFAR100 = _Kind(
    "cifar100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    "CIFAR100",
    100,
    ((0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)),
)


def source_10(root: Path | None, settings: DataSettings) -> Source:
    return _source(_CIFAR10, root)


def source_100(root: Path | None, settings: DataSettings) -> Source:
    return _source(_CIFAR100, root)


def _source(kind: _Kind, root: Path | None) -> Source:
    """Raises DataError naming the places and what to do when there is no data and no network."""
    if root is None:
        raise DataError(
            f"{kind.folder} needs a data folder, to look in and to download to: "
            "--data DIR or $ESNAC_DATA."
        )
    train, test = find(root / kind.folder, "train"), find(root / kind.folder, "test")
    if train and test:
        train_part, class_names = read_split(train, 32)
        test_part, _ = read_split(test, 32, class_names)
        where = root / kind.folder
    else:
        train_part, class_names = _from_torchvision(kind, root, train=True)
        test_part, _ = _from_torchvision(kind, root, train=False)
        where = root / kind.layout
    if len(class_names) != kind.num_classes:
        raise DataError(f"{where}: expected {kind.num_classes} classes; found {len(class_names)}.")
    return Source(
        train_part,
        test_part,
        class_names,
        padding=4,
        flip=True,
        # As published; a smaller set of the same name gives 10 %.
        validation=5000 if len(train_part.labels) >= 50_000 else None,
        statistics=kind.statistics,
    )


def _from_torchvision(kind: _Kind, root: Path, train: bool) -> tuple[Labelled, tuple[str, ...]]:
    present = (root / kind.layout).is_dir()
    dataset_class = _dataset_class(kind)
    try:
        with contextlib.nullcontext() if present else _downloading(kind, root):
            dataset = dataset_class(str(root), train=train, download=not present)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            _damaged(kind, root, reason) if present else _missing(kind, root, reason)
        ) from None
    images = torch.from_numpy(dataset.data)  # n x 32 x 32 x 3, uint8

    def read(indices: torch.Tensor) -> torch.Tensor:
        return images.index_select(0, indices).permute(0, 3, 1, 2).contiguous()

    return Labelled(torch.tensor(dataset.targets), read), tuple(dataset.classes)


def _dataset_class(kind: _Kind) -> Any:
    torchvision()
    from torchvision import datasets

    return getattr(datasets, kind.class_name)


@contextlib.contextmanager
def _downloading(kind: _Kind, root: Path) -> Iterator[None]:
    """A dead connection ends after 30 s; a failure leaves no half a file and no new folder.

    An archive that was there before stays.
    """
    archive, timeout = root / kind.archive, socket.getdefaulttimeout()
    existed, downloaded = root.exists(), not archive.exists()
    socket.setdefaulttimeout(30)
    try:
        yield
    except BaseException:
        if downloaded:
            archive.unlink(missing_ok=True)
        shutil.rmtree(root / kind.layout, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise
    finally:
        socket.setdefaulttimeout(timeout)


def _missing(kind: _Kind, root: Path, reason: str) -> str:
    return (
        f"No {kind.folder}: looked for train.parquet and test.parquet in {root / kind.folder} and "
        f"for {root / kind.layout}, and the download failed ({reason}). Name the folder that has "
        "one of them: --data DIR or $ESNAC_DATA. With a network, this fills DIR: python -c "
        f"\"import pathlib, esnac.data as d; d.load('{kind.folder}', pathlib.Path('DIR'), "
        f'd.DataSettings())"'
    )


def _damaged(kind: _Kind, root: Path, reason: str) -> str:
    return (
        f"{root / kind.layout} is not the {kind.class_name} of torchvision ({reason}). Remove it "
        "and run again to download it."
    )
