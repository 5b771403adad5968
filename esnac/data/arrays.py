"""Data sets as arrays and plain values, to travel to workers that share the memory of a machine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esnac.data.sets import DataSet, ImageSet

_SPLITS = ("train", "validation", "test")


def pack(data: DataSet) -> dict[str, Any]:
    """`images` and `labels` of each split as arrays, and the set's other fields."""
    plain = {field.name: getattr(data, field.name) for field in fields(data)}
    for name in _SPLITS:
        part: ImageSet = plain[name]
        plain[name] = {"images": to_array(part.images), "labels": to_array(part.labels)}
    return plain


def unpack(packed: Mapping[str, Any]) -> DataSet:
    """The inverse of `pack`; shares its memory, which may be read-only."""
    parts = {
        name: ImageSet(to_tensor(packed[name]["images"]), to_tensor(packed[name]["labels"]))
        for name in _SPLITS
    }
    return DataSet(**{**packed, **parts})


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor on any device as an array on the CPU."""
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the memory of `array`; not to be written to where that is read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)
