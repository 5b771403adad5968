"""Data sets as arrays and plain values, to travel to workers that share the memory of a machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esnac.data.file_list import FileList
from esnac.data.sets import DataSet, ImageSet
from esnac.data.streaming import Decoder, StreamedSet, require_here

_SPLITS = ("train", "validation", "test")


def pack(data: DataSet) -> dict[str, Any]:
    """`images` and `labels` of each split as arrays, and the set's other fields.

    Of streamed images the list of files goes along, as `files`, and not what is in them.
    """
    plain = {field.name: getattr(data, field.name) for field in fields(data)}
    for name in _SPLITS:
        part = plain[name]
        if isinstance(part, StreamedSet):
            plain["files"] = _pack_files(part.decoder)
            plain[name] = {"rows": to_array(part.rows), "labels": to_array(part.labels)}
        else:
            plain[name] = {"images": to_array(part.images), "labels": to_array(part.labels)}
    return plain


def unpack(packed: Mapping[str, Any]) -> DataSet:
    """The inverse of `pack`; shares its memory, which may be read-only.

    Raises DataError where streamed images cannot be found.
    """
    plain = dict(packed)
    files = plain.pop("files", None)
    decoder = None if files is None else _unpack_files(files)
    for name in _SPLITS:
        arrays = {key: to_tensor(array) for key, array in plain[name].items()}
        plain[name] = ImageSet(**arrays) if decoder is None else StreamedSet(decoder, **arrays)
    return DataSet(**plain)


def _pack_files(decoder: Decoder) -> dict[str, Any]:
    files = decoder.files
    packed = {"root": files.root, "text": to_array(files.text), "ends": to_array(files.ends)}
    own = {"size": decoder.size, "workers": decoder.workers, "channels": decoder.channels}
    return {"list": packed, **own}


def _unpack_files(packed: Mapping[str, Any]) -> Decoder:
    root, text, ends = (packed["list"][name] for name in ("root", "text", "ends"))
    files = FileList(root, to_tensor(text), to_tensor(ends))
    require_here(files)
    return Decoder(files, packed["size"], packed["workers"], packed["channels"])


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor on any device as an array on the CPU."""
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the memory of `array`; not to be written to where that is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)
