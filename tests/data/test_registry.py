from __future__ import annotations

import pytest

from esnac import data
from esnac.errors import DataError, UnknownNameError


@pytest.mark.parametrize("name", ["digit", "images", "images:PATHS:", "foo:/tmp", ""])
def test_unknown_names_list_the_known(name: str) -> None:
    if name == "images:PATHS:":  # a path, though one that is not there
        with pytest.raises(DataError, match="no folder or archive PATHS:"):
            data.load(name, None, data.DataSettings())
        return
    with pytest.raises(UnknownNameError, match=r"cifar10, cifar100, digits, images:PATH"):
        data.load(name, None, data.DataSettings())


def test_an_empty_path() -> None:
    with pytest.raises(DataError, match="names no path"):
        data.load("images:", None, data.DataSettings())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_without_a_root(name: str) -> None:
    with pytest.raises(DataError, match=r"--data DIR or \$ESNAC_DATA"):
        data.load(name, None, data.DataSettings())
