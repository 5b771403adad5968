from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from esnac import networks
from esnac.errors import EsnacError

SOURCE = """
from torch import nn

def both(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Flatten(), nn.LazyLinear(num_classes))

def only_classes(num_classes):
    return nn.Linear(5, num_classes)

def refuses_further_down(**kwargs):
    return only_classes(**kwargs)

def fails(num_classes, in_channels):
    raise ValueError("no such\\n  depth.")

def other_type_error(num_classes, in_channels):
    return len(num_classes)

def no_module(num_classes, in_channels):
    return [num_classes]

class Group:
    linear = staticmethod(only_classes)

constant = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what a test imports from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0].startswith("users_"):
            del sys.modules[name]


@pytest.fixture
def users(here: Path) -> str:
    (here / "users_nets.py").write_text(SOURCE)
    return "users_nets"


def test_gets_classes_and_channels(users: str) -> None:
    network = networks.build(f"{users}:both", num_classes=6, in_channels=2)
    assert network(torch.zeros(3, 2, 4, 4)).shape == (3, 6)


@pytest.mark.parametrize("name", ["only_classes", "refuses_further_down", "Group.linear"])
def test_callable_without_in_channels(users: str, name: str) -> None:
    network = networks.build(f"{users}:{name}", num_classes=6, in_channels=1)
    assert isinstance(network, nn.Linear)
    assert network.out_features == 6


def test_module_in_a_package_that_imports_its_neighbour_when_called(here: Path) -> None:
    package = here / "users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "def net(num_classes):\n    import users_neighbour\n"
        "    return users_neighbour.make(num_classes)\n"
    )
    (here / "users_neighbour.py").write_text(
        "from torch import nn\n\ndef make(n):\n    return nn.Linear(2, n)\n"
    )
    network = networks.build("users_package.nets:net", 9)
    assert network(torch.zeros(1, 2)).shape == (1, 9)


def test_a_file_here_does_not_shadow_an_installed_package(here: Path) -> None:
    (here / "colorsys.py").write_text("raise RuntimeError('the wrong one')\n")
    sys.modules.pop("colorsys", None)
    with pytest.raises(EsnacError, match="no 'net'"):
        networks.build("colorsys:net", 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_missing:net", r"importing users_missing failed, ModuleNotFoundError"),
        ("users_nets:missing", r"module users_nets has no 'missing'"),
        ("users_nets:constant", r"3 is a int, not a callable"),
        ("users_nets:fails", r"num_classes=10, in_channels=3: ValueError: no such depth\.$"),
        ("users_nets:other_type_error", r"TypeError: object of type 'int' has no len"),
        ("users_nets:no_module", r"must return a torch\.nn\.Module; it returned a list"),
        ("users_nets:", r"named package\.module:callable"),
        (":net", r"named package\.module:callable"),
        ("..nets:net", r"named package\.module:callable"),
        ("users/nets.py:net", r"named package\.module:callable"),
    ],
)
def test_errors_are_one_line(users: str, name: str, message: str) -> None:
    with pytest.raises(EsnacError, match=message) as caught:
        networks.build(name, 10)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_module_that_fails_on_import(here: Path) -> None:
    (here / "users_broken.py").write_text("def net(:\n")
    with pytest.raises(EsnacError, match="importing users_broken failed, SyntaxError"):
        networks.build("users_broken:net", 10)
