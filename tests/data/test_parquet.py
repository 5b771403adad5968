from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from esnac import data
from esnac.data import DataSettings
from esnac.errors import DataError

SETTINGS = DataSettings(size=4)
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def write(file: Path, labels: list[Any], names: list[str] | None = None, **extra: Any) -> Path:
    """Grey images whose value is 10 * label + 1, Hugging Face schema."""
    images = [
        {"bytes": png(10 * (label or 0) % 250 + 1), "path": f"{i}.png"}
        for i, label in enumerate(labels)
    ]
    columns = {"image": pyarrow.array(images, IMAGE), "label": pyarrow.array(labels)}
    columns |= {name: pyarrow.array(values) for name, values in extra.items()}
    table = pyarrow.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, file)
    return file


def load(path: Path) -> data.DataSet:
    return data.load(f"parquet:{path}", None, SETTINGS)


def test_one_file(tmp_path: Path) -> None:
    own = load(
        write(tmp_path / "all.parquet", [0, 1, 2] * 10, ["ant", "bee", "cow"], id=list(range(30)))
    )
    assert own.class_names == ("ant", "bee", "cow")
    assert (len(own.train), len(own.validation), len(own.test)) == (22, 2, 6)
    assert own.input_shape == (1, 4, 4)
    for part in (own.train, own.validation, own.test):
        assert torch.equal(part.images[:, 0, 0, 0].long(), 10 * part.labels + 1)


@pytest.mark.parametrize("folder", [".", "data"])
def test_a_folder_of_shards(tmp_path: Path, folder: str) -> None:
    for shard in range(2):
        write(tmp_path / folder / f"train-0000{shard}-of-00002.parquet", [0, 1] * 5)
    write(tmp_path / folder / "test-00000-of-00001.parquet", [0, 1, 1])
    own = load(tmp_path)
    assert (len(own.train), len(own.validation), len(own.test)) == (18, 2, 3)
    assert own.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 0, 0, 1], ["ant", "bee"], "class 'bee' has a single image"),
        ([0, 0, 2, 2], None, "class '1' has no image"),
        ([0, 0, 0], None, "at least two classes"),
        ([0, 0, 1, 1, -1], None, "got -1"),
        ([0, 0, 1, None, 1], None, "1 images have no label"),
        ([0, 0, 1, 1, 2], ["ant", "bee"], "label 2 is beyond 2 classes"),
        ([], None, "expected one column of labels"),  # of type null
    ],
)
def test_unusable_labels(
    tmp_path: Path, labels: list[Any], names: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "x.parquet", labels, names))


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet file or folder"):
        load(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"has no train\.parquet"):
        load(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"Cannot read .*x\.parquet as Parquet"):
        load(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"label": [0, 1]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"a struct with bytes; found label \(int64\)"):
        load(tmp_path / "y.parquet")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"train-{shard}.parquet", [0, 1] * 5)
    (tmp_path / "train-1.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"Cannot read .*train-1\.parquet as Parquet"):
        load(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    images = [{"bytes": png(1), "path": f"{index}.png"} for index in range(8)]
    images[5]["bytes"] = b"broken"
    table = pyarrow.table({"image": pyarrow.array(images, IMAGE), "label": [0, 1] * 4})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"image 5 \(5\.png\) of .*x\.parquet"):
        load(tmp_path / "x.parquet")
