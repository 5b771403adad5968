"""Messages that name the nearest and all known names, also across processes."""

from __future__ import annotations

import pickle

import pytest

from esnac import errors
from esnac.errors import EsnacError, UnknownNameError, did_you_mean, nearest


def test_unknown_name_carries_nearest_and_all_known() -> None:
    error = UnknownNameError("dataset", "cifar1O", ["digits", "cifar10", "cifar100"])
    assert str(error) == (
        "Unknown dataset 'cifar1O'. Did you mean 'cifar10'? Known: cifar10, cifar100, digits."
    )


def test_unknown_name_with_nothing_close() -> None:
    assert str(UnknownNameError("preset", "zzz", iter(["quick"]))) == (
        "Unknown preset 'zzz'. Known: quick."
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet", "ResNet18"), ("RESNET18", "ResNet18"), ("vgg-19", "vgg19"), ("xyz", None)],
)
def test_nearest_ignores_case(name: str, expected: str | None) -> None:
    assert nearest(name, ["ResNet18", "vgg19"]) == expected


def test_did_you_mean() -> None:
    assert did_you_mean("stpes", ["steps", "batch"]) == " Did you mean 'steps'?"
    assert did_you_mean("stpes", []) == ""


def test_errors_survive_pickling() -> None:
    error = UnknownNameError("network", "resnet21", ["resnet20", "vgg16"])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownNameError
    assert str(copy) == str(error)


def test_every_error_is_an_esnac_error() -> None:
    values = [value for value in vars(errors).values() if isinstance(value, type)]
    classes = [value for value in values if value.__module__ == errors.__name__]
    assert len(classes) >= 8
    assert all(issubclass(value, EsnacError) for value in classes)
