"""Image sets by name, each split into train / validation / test and held whole as uint8 tensors.

`digits`, `cifar10` and `cifar100` by their names; a user's own as `images:PATH` (one folder per
class) or `parquet:PATH` (Hugging Face image schema), or as tensors through `from_tensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from esnac.data import cifar, digits, image_folder, parquet
from esnac.data.sets import DataSet, ImageSet
from esnac.data.settings import DataSettings
from esnac.data.source import Source, assemble, partition
from esnac.data.tensors import from_tensors
from esnac.errors import DataError, UnknownNameError

__all__ = [
    "DATASETS",
    "DataSet",
    "DataSettings",
    "ImageSet",
    "Source",
    "count_training_images",
    "from_tensors",
    "load",
]

#: From (the data root, or the PATH of the name, and the settings) to the images with their labels.
DATASETS: dict[str, Callable[[Path | None, DataSettings], Source]] = {
    "digits": digits.source,
    "cifar10": cifar.source_10,
    "cifar100": cifar.source_100,
    "images:PATH": image_folder.source,
    "parquet:PATH": parquet.source,
}


def load(name: str, root: Path | None, settings: DataSettings) -> DataSet:
    """The set called `name`, on the CPU; `root` is where CIFAR is looked for and downloaded to.

    A relative PATH in `name` starts at the current directory. Equal arguments give equal splits.
    Raises UnknownNameError, and DataError for data that is missing, unreadable or too little.
    """
    return assemble(name, _source(name, root, settings), settings)


def count_training_images(name: str, root: Path | None, settings: DataSettings) -> int:
    """`len(load(...).train)`, without decoding an image."""
    source = _source(name, root, settings)
    return len(partition(name, source, settings).train)


def _source(name: str, root: Path | None, settings: DataSettings) -> Source:
    kind, colon, path = name.partition(":")
    key = f"{kind}:PATH" if colon else name
    if key not in DATASETS or name == key == f"{kind}:PATH":
        raise UnknownNameError("dataset", name, DATASETS)
    if colon and not path:
        raise DataError(f"The dataset {name!r} names no path; write {key}.")
    return DATASETS[key](Path(path).expanduser() if colon else root, settings)
