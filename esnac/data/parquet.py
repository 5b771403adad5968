"""`parquet:PATH`: images in Parquet files as the Hugging Face hub keeps them.

The image column is a struct with `bytes`, the label column whole numbers from 0; the class names
stand in the schema metadata under `huggingface`. PATH is a file (20 % of each class become the test
set), or a folder with `train*.parquet` and, if there is a test set, `test*.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from esnac.data.decode import decode
from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source, require_two_of_each
from esnac.errors import DataError

#: Taken first among several columns of labels.
LABELS = ("label", "fine_label", "labels")


def source(path: Path | None, settings: DataSettings) -> Source:
    """The images at `path`. Raises DataError for what cannot be read, told apart or split."""
    assert path is not None
    if path.is_file():
        train_files, test_files = [path], []
    elif path.is_dir():
        train_files, test_files = find(path, "train"), find(path, "test")
    else:
        raise DataError(f"There is no Parquet file or folder {path}.")
    if not train_files:
        raise DataError(f"{path} has no train.parquet (or train-*.parquet).")
    train, class_names = read_split(train_files, settings.size)
    test = read_split(test_files, settings.size, class_names)[0] if test_files else None
    require_two_of_each(str(path), train.labels, class_names)
    return Source(train, test, class_names, padding=settings.size // 8, flip=True)


def find(folder: Path, split: str) -> list[Path]:
    """`split`.parquet or its shards `split`-*.parquet, in `folder` or its sub-folder data."""
    for place in (folder, folder / "data"):
        for pattern in (f"{split}.parquet", f"{split}-*.parquet"):
            if files := sorted(place.glob(pattern)):
                return files
    return []


def read_split(
    files: list[Path], size: int, class_names: tuple[str, ...] | None = None
) -> tuple[Labelled, tuple[str, ...]]:
    """The images of `files` together, in their order, and the names of the classes.

    `class_names`: those of the training images, which the labels must fit.
    """
    import pyarrow

    where = str(files[0] if len(files) == 1 else files[0].parent)
    with _reading(files[0]):
        columns = _columns(files[0])
    tables = []
    for file in files:
        with _reading(file):
            tables.append(_read(file, columns))
    with _reading(where):
        table = pyarrow.concat_tables(tables)
    labels = _labels(where, table[columns[1]])
    if class_names is None:
        class_names = _class_names(table.schema, columns[1])
        class_names = class_names or tuple(map(str, range(int(labels.max()) + 1)))
    if int(labels.max()) >= len(class_names):
        raise DataError(f"{where}: label {int(labels.max())} is beyond {len(class_names)} classes.")
    images = table[columns[0]]

    def read(indices: torch.Tensor) -> torch.Tensor:
        chosen = images.take(pyarrow.array(indices.numpy())).to_pylist()
        blobs = [(image or {}).get("bytes") for image in chosen]
        names = [
            f"{index} ({(image or {}).get('path')}) of {where}"
            for index, image in zip(indices.tolist(), chosen, strict=True)
        ]
        return decode(blobs, names, size)

    return Labelled(labels, read), class_names


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    """Errors inside are DataErrors that name `where`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"Cannot read {where} as Parquet: {first}") from None


def _read(file: Path, columns: tuple[str, str]) -> Any:
    import pyarrow.parquet

    if missing := set(columns) - set(pyarrow.parquet.read_schema(file).names):
        raise DataError(f"{file} has no column {', '.join(sorted(missing))}, unlike other files.")
    return pyarrow.parquet.read_table(file, columns=list(columns), partitioning=None)


def _columns(file: Path) -> tuple[str, str]:
    """The names of the columns of images and of labels. Raises DataError unless both are plain."""
    import pyarrow.parquet
    from pyarrow import types

    schema = pyarrow.parquet.read_schema(file)
    images = [
        f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0
    ]
    whole = [f.name for f in schema if types.is_integer(f.type)]
    labels = [name for name in LABELS if name in whole]
    labels = labels or [name for name in whole if _class_names(schema, name)] or whole
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if len(images) != 1:
        raise DataError(
            f"{file}: expected one column of images, a struct with bytes; found {found}."
        )
    if not labels or (len(labels) > 1 and labels[0] not in LABELS):
        raise DataError(f"{file}: expected one column of labels, whole numbers; found {found}.")
    return images[0], labels[0]


def _labels(where: str, column: Any) -> torch.Tensor:
    if not len(column):
        raise DataError(f"{where} has no rows.")
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} images have no label.")
    # A copy: Arrow's own memory is read-only.
    labels = torch.tensor(column.to_numpy(), dtype=torch.int64)
    if int(labels.min()) < 0:
        raise DataError(f"{where}: labels start at 0; got {int(labels.min())} (no label?).")
    return labels


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """From {"info": {"features": {label: {"names": [...], "_type": "ClassLabel"}}}}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):  # other metadata, or a plain column of numbers
        return None
