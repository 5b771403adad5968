from __future__ import annotations

import pickle
import warnings
from dataclasses import fields

import numpy as np
import pytest
import torch

from esnac.data import DataSet, DataSettings, from_tensors, load
from esnac.data.arrays import pack, to_array, to_tensor, unpack
from esnac.data.batches import training_batches


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load("digits", None, DataSettings(padding=1))


def parts(data: DataSet) -> list[torch.Tensor]:
    splits = (data.train, data.validation, data.test)
    return [tensor for split in splits for tensor in (split.images, split.labels)]


def same(one: DataSet, other: DataSet) -> bool:
    splits = ("train", "validation", "test")
    plain = [field.name for field in fields(one) if field.name not in splits]
    return all(getattr(one, name) == getattr(other, name) for name in plain) and all(
        torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        for mine, theirs in zip(parts(one), parts(other), strict=True)
    )


def test_what_was_packed_comes_out_again(digits: DataSet) -> None:
    assert same(unpack(pack(digits)), digits)
    assert same(unpack(pickle.loads(pickle.dumps(pack(digits)))), digits)


def test_colours_and_a_set_without_test_images() -> None:
    images = torch.arange(40 * 3 * 5 * 6, dtype=torch.int32).to(torch.uint8).view(40, 3, 5, 6)
    own = from_tensors((images, torch.arange(40) % 2), None)
    assert same(unpack(pack(own)), own)


def test_nothing_is_copied(digits: DataSet) -> None:
    for mine, theirs in zip(parts(unpack(pack(digits))), parts(digits), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_tensors_of_any_kind_keep_their_values(dtype: torch.dtype) -> None:
    tensor = torch.arange(24).view(2, 3, 4).to(dtype)
    for one in (tensor, tensor.transpose(0, 2), tensor[:, 1], tensor[:0]):
        again = to_tensor(to_array(one))
        assert again.dtype == dtype
        assert torch.equal(again, one)
    assert to_array(torch.ones(2, requires_grad=True)).tolist() == [1, 1]


def test_read_only_memory_gives_the_same_batches_and_no_warning(digits: DataSet) -> None:
    """As an object store has it."""
    packed = pack(digits)
    for split in ("train", "validation", "test"):
        packed[split] = {name: frozen(array) for name, array in packed[split].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = unpack(packed)
    for mine, theirs in zip(batches(shared), batches(digits), strict=True):
        assert torch.equal(mine, theirs)
    assert same(shared, digits), "and nothing was written"


def frozen(array: np.ndarray) -> np.ndarray:
    copy = np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
    assert not copy.flags.writeable
    return copy


def batches(data: DataSet) -> list[torch.Tensor]:
    made = training_batches(
        data,
        100,
        order_generator=torch.Generator().manual_seed(1),
        augmentation_seed=2,
        epoch=0,
        memory_format=torch.contiguous_format,
    )
    return [inputs for inputs, _, _ in made]
