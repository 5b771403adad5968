"""What setup.cfg promises is there, and what is there is promised."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def config(root: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


def names(requirements: str) -> list[str]:
    return [re.split(r"[<>=!~\[ ]", line)[0].lower() for line in requirements.split("\n") if line]


def test_every_search_space_and_recipe_is_installed(root: Path, config: ConfigParser) -> None:
    installed = {
        (target, path)
        for target, patterns in config["options.data_files"].items()
        for pattern in patterns.split()
        for path in root.glob(pattern)
    }
    files = [*root.glob("search_spaces/*.toml"), *root.glob("teachers/*/recipe.toml")]
    assert len(files) >= 2
    expected = {(f"share/esnac/{path.parent.relative_to(root).as_posix()}", path) for path in files}
    assert installed == expected


def test_every_recipe_pattern_finds_a_file(root: Path, config: ConfigParser) -> None:
    patterns = " ".join(config["options.data_files"].values()).split()
    assert [pattern for pattern in patterns if not list(root.glob(pattern))] == []


def test_constraints_pin_every_direct_dependency(root: Path, config: ConfigParser) -> None:
    extras = config["options.extras_require"]
    wanted = names(config["options"]["install_requires"]) + names(extras["test"] + extras["dev"])
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.]*", pin) for pin in pins)
    assert set(wanted) - {pin.split("==")[0].lower() for pin in pins} == set()
