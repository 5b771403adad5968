"""`images:PATH`: a folder, or a zip or tar archive, with one sub-folder of images per class.

    PATH/cat/1.png  PATH/dog/2.png ...              20 % of each class become the test set
    PATH/train/cat/1.png ...  PATH/test/cat/3.png   the two parts as they are

Images may lie deeper inside a class. One folder around all classes is looked through. Hidden files,
files in no class and files without the suffix of an image are left out. Classes are numbered in the
order of their names.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from esnac.data.decode import decode
from esnac.data.file_list import FileList
from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source, require_two_of_each
from esnac.errors import DataError

# All of them are read by Pillow alone.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")
    + (".webp",)
)

#: Images by their path inside the folder or archive, which is shortened as folders are opened: the
#: whole path as text, or the bytes of a member.
Files = Mapping[PurePosixPath, str | bytes]


def source(path: Path | None, settings: DataSettings) -> Source:
    """The images under `path`. Raises DataError for what cannot be read or has too few images."""
    assert path is not None
    files = _unwrapped(_list(path))
    train, test = _parts(path, files)
    # A class whose folder has no readable image is still a class: it is an error, not left out.
    classes = tuple(sorted({file.parts[0] for file in train}))
    where = str(path)
    labelled = _labelled(path, train, classes, settings.size)
    require_two_of_each(where, labelled.labels, classes)
    for file in test:
        if file.parts[0] not in classes:
            raise DataError(f"{where}: the class {file.parts[0]!r} is in test/ but not in train/.")
    return Source(
        train=labelled,
        test=_labelled(path, test, classes, settings.size) if test else None,
        class_names=classes,
        padding=settings.size // 8,
        flip=True,
    )


def _list(path: Path) -> Files:
    """All files in folders, hidden ones left out."""
    if path.is_dir():
        files = _from_folder(path)
    elif not path.exists():
        raise DataError(f"There is no folder or archive {path}.")
    else:
        files = _from_archive(path)
    return {
        file: blob
        for file, blob in files.items()
        if not any(part.startswith(".") or part == "__MACOSX" for part in file.parts)
    }


def _from_folder(path: Path) -> Files:
    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}.")

    files: dict[PurePosixPath, str | bytes] = {}
    above = {str(path): {os.path.realpath(path)}}  # real folders on the way to each one
    for folder, folders, names in os.walk(path, followlinks=True, onerror=refuse):
        relative, way = Path(folder).relative_to(path).as_posix(), above.pop(folder)
        real = {name: os.path.realpath(Path(folder, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in way]  # else a circle of links
        above |= {os.path.join(folder, name): way | {real[name]} for name in folders}
        if not folders and not names:
            files[PurePosixPath(relative, _EMPTY)] = b""
        for name in names:
            files[PurePosixPath(relative, name)] = os.path.join(relative, name)
    return files


#: Stands for the content of an empty folder, so that an empty class is seen.
_EMPTY = "(empty)"


def _from_archive(path: Path) -> Files:
    """The members in memory: nothing is written to disk, so nothing can end up outside a folder.

    A member that would escape (absolute, "..", a link) still marks an archive not to be trusted.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [(_safe(path, info.filename), info) for info in archive.infolist()]
                return {name: archive.read(info) for name, info in members if _is_image(name)}
        if tarfile.is_tarfile(path):
            return _from_tar(path)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise DataError(f"Cannot read the archive {path}: {error}.") from None
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"The archive {path} is damaged: {error}.") from None
    raise DataError(f"{path} is neither a folder nor a zip or tar archive.")


def _from_tar(path: Path) -> Files:
    files: dict[PurePosixPath, str | bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = _safe(path, member.name)
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{path}: the member {member.name!r} is a link or device.")
            content = archive.extractfile(member) if _is_image(name) else None
            if content is not None:
                files[name] = content.read()
    return files


def _safe(path: Path, member: str) -> PurePosixPath:
    name = PurePosixPath(member.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or member[1:2] == ":":
        raise DataError(f"{path}: the member {member!r} would leave the archive's folder.")
    return name


def _unwrapped(files: Files) -> Files:
    """Without the one folder around everything, if it holds no image itself."""
    while len({file.parts[0] for file in _in_folders(files)}) == 1 and not any(
        _is_image(file) and len(file.parts) < 3 for file in files
    ):
        files = _inside(files, None)
    return files


def _parts(path: Path, files: Files) -> tuple[Files, Files]:
    """Training and test images, the second empty if there is no such part."""
    files = _in_folders(files)
    # A folder train/ with images and no folders is a class of that name.
    if not any(
        _is_image(file) and len(file.parts) > 2 and file.parts[0] == "train" for file in files
    ):
        return files, {}
    tops = {file.parts[0] for file in files}
    if tops - {"train", "test"}:
        others = ", ".join(sorted(tops - {"train", "test"}))
        raise DataError(f"{path} has train/ and also {others}; expected only train/ and test/.")
    test = _in_folders(_inside(files, "test"))
    if "test" in tops and not any(_is_image(file) for file in test):
        raise DataError(f"{path}: test/ has no image in a folder of its class.")
    return _in_folders(_inside(files, "train")), test


def _in_folders(files: Files) -> Files:
    return {file: blob for file, blob in files.items() if len(file.parts) > 1}


def _inside(files: Files, folder: str | None) -> Files:
    """By their paths inside `folder`, or inside any folder."""
    return {
        PurePosixPath(*file.parts[1:]): blob
        for file, blob in _in_folders(files).items()
        if folder in (None, file.parts[0])
    }


def _is_image(file: PurePosixPath) -> bool:
    return file.suffix.lower() in SUFFIXES


def _labelled(root: Path, files: Files, classes: tuple[str, ...], size: int) -> Labelled:
    images = sorted(file for file in files if _is_image(file))
    number = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([number[file.parts[0]] for file in images], dtype=torch.int64)
    blobs = [files[file] for file in images]
    if root.is_dir():
        listed = FileList.of(root, [blob for blob in blobs if isinstance(blob, str)])
        return Labelled(labels, lambda indices: _read_files(listed, indices, size), listed)
    members = [blob for blob in blobs if isinstance(blob, bytes)]

    def read(indices: torch.Tensor) -> torch.Tensor:
        chosen = indices.tolist()
        names = [f"{images[index]} in {root}" for index in chosen]
        return decode([members[index] for index in chosen], names, size)

    return Labelled(labels, read)


def _read_files(files: FileList, indices: torch.Tensor, size: int) -> torch.Tensor:
    chosen = [files[index] for index in indices.tolist()]
    return decode(chosen, list(map(str, chosen)), size)
