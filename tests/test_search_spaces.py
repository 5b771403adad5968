from pathlib import Path

import pytest

from esnac import search_spaces
from esnac.errors import SettingsError
from esnac.search_spaces import SpaceSettings
from esnac.settings import build

SHIPPED = Path(__file__).parent.parent / "search_spaces"


def test_the_shipped_default_is_the_default():
    assert (
        build(SpaceSettings, search_spaces.load(SHIPPED, "resnet18", "resnet")) == SpaceSettings()
    )


def test_network_before_family_before_default(tmp_path):
    for name, limit in (("vgg16", 0.1), ("vgg", 0.2), ("default", 0.3)):
        (tmp_path / f"{name}.toml").write_text(f"shrink_limit = {limit}")
    limits = [
        search_spaces.load(tmp_path, name, family)["shrink_limit"]
        for name, family in (("vgg16", "vgg"), ("vgg19", "vgg"), ("resnet18", "resnet"))
    ]
    assert limits == [0.1, 0.2, 0.3]


def test_names_from_outside_do_not_escape_the_folder(tmp_path):
    (tmp_path / "secret.toml").write_text("minimum = 4")
    (tmp_path / "spaces").mkdir()
    assert search_spaces.load(tmp_path / "spaces", "../secret", "pkg.mod:fn") == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"removal_rates": (1.5,)},
        {"moves": ("grow",)},
        {"shrink_limit": 0.0},
        {"multiple": 0},
        {"moves": ("remove", "skip"), "multiple": 8},
    ],
)
def test_bad_values(bad):
    with pytest.raises(SettingsError, match="space"):
        SpaceSettings(**bad)
