from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from esnac import data
from esnac.data import DataSet, DataSettings
from esnac.errors import DataError

SETTINGS = DataSettings(size=8)


def write(folder: Path, count: int, value: int) -> None:
    """`count` RGB images of one colour, a little wider than high."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (10, 8), (value, index, 0)).save(folder / f"{index}.png")


def load(path: Path) -> DataSet:
    return data.load(f"images:{path}", None, SETTINGS)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    write(tmp_path / "pets" / "dog", 20, 200)
    write(tmp_path / "pets" / "cat", 10, 100)
    return tmp_path / "pets"


def test_one_folder_per_class(pets: Path) -> None:
    (pets / "README.txt").write_text("not an image")
    (pets / "cat" / ".hidden.png").write_text("not an image")
    write(pets / "cat" / "deeper", 5, 100)
    own = load(pets)
    assert own.class_names == ("cat", "dog")
    assert (len(own.train), len(own.validation), len(own.test)) == (25, 3, 7)
    assert (own.input_shape, own.padding, own.flip) == ((3, 8, 8), 1, True)
    for part in (own.train, own.validation, own.test):
        assert torch.equal(part.images[:, 0, 0, 0], torch.tensor([100, 200]).byte()[part.labels])


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_archive_is_the_same_as_its_folder(
    pets: Path, tmp_path: Path, form: str, wrapped: bool
) -> None:
    base = pets.parent if wrapped else pets
    archive = shutil.make_archive(
        str(tmp_path / "out" / "archive"), form, base, "pets" if wrapped else "."
    )
    packed, folder = load(Path(archive)), load(pets)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(packed, name).images, getattr(folder, name).images)
        assert torch.equal(getattr(packed, name).labels, getattr(folder, name).labels)


def test_train_and_test_folders(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("test", 3)):
        write(tmp_path / part / "a", count, 50)
        write(tmp_path / part / "b", count, 60)
    own = load(tmp_path)
    assert (len(own.train), len(own.validation), len(own.test)) == (18, 2, 6)
    write(tmp_path / "test" / "c", 3, 70)
    with pytest.raises(DataError, match=r"class 'c' is in test/ but not in train/"):
        load(tmp_path)
    write(tmp_path / "val" / "a", 3, 70)
    with pytest.raises(DataError, match=r"has train/ and also val"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path / "train", 10, 50)
    write(tmp_path / "car", 10, 60)
    assert load(tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize(("count", "found"), [(1, "a single image"), (0, "no image")])
def test_a_class_with_too_few_images_is_named(pets: Path, count: int, found: str) -> None:
    write(pets / "emu", count, 1)
    with pytest.raises(DataError, match=f"class 'emu' has {found}"):
        load(pets)


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two classes; found none"):
        load(tmp_path)
    write(tmp_path / "one", 5, 1)
    with pytest.raises(DataError, match="at least two classes; found only 'one'"):
        load(tmp_path)


def test_an_unreadable_image_is_named(pets: Path) -> None:
    bad = pets / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(DataError, match=str(bad)):
        load(pets)
    bad.unlink()
    bad.symlink_to("nowhere")
    with pytest.raises(DataError, match=str(bad)):
        load(pets)


def test_paths_that_are_no_image_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder or archive"):
        load(tmp_path / "none")
    (tmp_path / "file.zip").write_bytes(b"PK\x03\x04 but not a zip")
    with pytest.raises(DataError, match="neither a folder nor a zip or tar archive"):
        load(tmp_path / "file.zip")


def test_a_damaged_archive(pets: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "gztar", pets))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"pets\.tar\.gz"):
        load(archive)
    archive = Path(shutil.make_archive(str(tmp_path / "pets"), "zip", pets))
    content = bytearray(archive.read_bytes())
    content[60:100] = bytes(40)
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"pets\.zip"):
        load(archive)


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\..\\evil.png", "C:\\evil.png"]
)
def test_members_that_escape(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    for form in ("zip", "tar"):
        with pytest.raises(DataError, match="would leave the archive's folder"):
            load(tmp_path / f"bad.{form}")


def test_links_in_an_archive(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/1.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(DataError, match="'a/1.png' is a link"):
        load(tmp_path / "bad.tar")


def test_links_in_a_circle_are_not_followed(pets: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", 5, 100)
    (tmp_path / "elsewhere" / "back").symlink_to(pets / "cat")
    (pets / "cat" / "again").symlink_to(pets / "cat")
    (pets / "cat" / "up").symlink_to(pets)
    (pets / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    own = load(pets)
    assert own.class_names == ("cat", "dog")
    assert len(own.train) + len(own.validation) + len(own.test) == 35
