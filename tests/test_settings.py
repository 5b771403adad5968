"""Settings: strict building, layers, TOML and `--set`, there and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esnac.errors import SettingsError
from esnac.settings import build, load_toml, merge, parse_assignments, require, to_plain


@dataclass(frozen=True)
class Training:
    epochs: int = 10
    rate: float = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    milestones: tuple[int, ...] = ()
    clip: float | None = 1.0
    loss: Literal["none", "mse"] | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)


@dataclass(frozen=True)
class Search:
    steps: int = 20
    size: tuple[int, int] = (3, 4)
    tables: tuple[tuple[int, ...], ...] = ()
    either: int | str = 0
    number: float | tuple[float, ...] = 0.0
    resume: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 1, "search.steps", "at least 1", self.steps)


@dataclass(frozen=True)
class Run:
    network: str
    search: Search = field(default_factory=Search)
    training: Training = field(default_factory=lambda: Training(epochs=300, optimizer="adam"))


def run(**values: Any) -> Run:
    return build(Run, {"network": "vgg16", **values})


def message(**values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        run(**values)
    return str(caught.value)


def test_nested_values_and_defaults() -> None:
    made = run(search={"steps": 5})
    assert made == Run("vgg16", search=Search(steps=5))


def test_a_table_changes_only_the_keys_it_names() -> None:
    assert run(training={"rate": 0.5}).training == Training(epochs=300, optimizer="adam", rate=0.5)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"search": {"steps": True}}, "settings: search.steps must be a whole number; got True."),
        ({"search": {"steps": 2.0}}, "settings: search.steps must be a whole number; got 2.0."),
        ({"search": {"resume": 1}}, "settings: search.resume must be true or false; got 1."),
        ({"training": {"rate": "x"}}, "settings: training.rate must be a finite number; got 'x'."),
        ({"training": {"rate": float("nan")}}, "must be a finite number; got nan."),
        ({"training": {"clip": "x"}}, "settings: training.clip must be a finite number; got 'x'."),
        ({"training": {"optimizer": "adm"}}, "one of sgd, adam; got 'adm'. Did you mean 'adam'?"),
        (
            {"training": {"milestones": 5}},
            "training.milestones must be a list, as in [1, 2]; got 5",
        ),
        ({"training": {"milestones": [1, "x"]}}, "milestones must be a whole number; got 'x'."),
        ({"search": {"size": [1]}}, "settings: search.size must have 2 values; got [1]."),
        ({"search": {"either": 1.5}}, "search.either must be a whole number or text; got 1.5."),
        ({"search": 5}, "settings: search is a table of settings; got 5."),
        ({"network": None}, "settings: network must be text; got None."),
    ],
)
def test_wrong_values(table: dict[str, Any], expected: str) -> None:
    assert expected in message(**table)


def test_unknown_keys_name_the_nearest() -> None:
    assert message(serach={}) == (
        "settings: unknown key 'serach'. Did you mean 'search'? Known: network, search, training."
    )
    assert "unknown key 'search.stpes'. Did you mean 'search.steps'? Known: search.either," in (
        message(search={"stpes": 1})
    )


def test_a_key_without_its_table_is_found() -> None:
    assert "unknown key 'milestones'. Did you mean 'training.milestones'?" in message(milestones=1)


def test_a_common_prefix_makes_no_two_keys_alike() -> None:
    assert "Did you mean" not in message(training={"qqq": 1})


def test_missing_keys() -> None:
    with pytest.raises(SettingsError, match=r"^a\.toml: network must be given\.$"):
        build(Run, {}, where="a.toml")


def test_values_out_of_range_name_their_place_once() -> None:
    assert (
        message(training={"epochs": 0}) == "settings: training: epochs must be at least 1; got 0."
    )
    assert message(search={"steps": 0}) == "settings: search.steps must be at least 1; got 0."


def test_unions() -> None:
    assert run(search={"either": "x"}).search.either == "x"
    assert run(search={"either": 3}).search.either == 3
    assert run(search={"number": 3}).search.number == 3.0
    assert run(search={"number": [1, 2]}).search.number == (1.0, 2.0)


def test_none_can_be_written() -> None:
    assert run(training={"clip": "none"}).training.clip is None
    assert run(training={"clip": None}).training.clip is None
    assert run(training={"loss": "none"}).training.loss == "none"  # the word is an option there
    assert run(training={"loss": None}).training.loss is None


def test_an_int_is_a_float_and_a_list_a_tuple() -> None:
    made = run(training={"rate": 1, "milestones": [1, 2]}).training
    assert isinstance(made.rate, float)
    assert made.milestones == (1, 2)


floats = st.floats(allow_nan=False, allow_infinity=False)
ints = st.integers(-(2**53), 2**53)


@given(
    st.builds(
        Run,
        network=st.text(),
        search=st.builds(
            Search,
            steps=st.integers(1, 99),
            size=st.tuples(ints, ints),
            tables=st.lists(st.lists(ints).map(tuple), max_size=3).map(tuple),
            either=ints | st.text(),
            number=floats | st.lists(floats).map(tuple),
            resume=st.booleans(),
        ),
        training=st.builds(
            Training,
            epochs=st.integers(1, 99),
            rate=floats,
            milestones=st.lists(ints).map(tuple),
            clip=st.none() | floats,
        ),
    )
)
def test_there_and_back_through_json(settings: Run) -> None:
    assert build(Run, json.loads(json.dumps(to_plain(settings)))) == settings


def test_merge_later_layers_win_and_leave_the_earlier_alone() -> None:
    first = {"a": 1, "b": {"c": 2, "d": 3}}
    assert merge(first, {"b": {"c": 4}}, {"e": 5}) == {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert first == {"a": 1, "b": {"c": 2, "d": 3}}
    assert merge({"a": {"b": 1}}, {"a": 2}, {"a": {"c": 3}}) == {"a": {"c": 3}}
    assert merge() == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"5"', "5"),
        ("quick", "quick"),
        ("a=b", "a=b"),
        ("images:/some/path", "images:/some/path"),
        ("1\nother = 2", "1\nother = 2"),  # not two keys
    ],
)
def test_assignment_values(text: str, value: Any) -> None:
    parsed = parse_assignments([f" search.steps = {text} "])
    assert parsed == {"search": {"steps": value}}
    assert type(parsed["search"]["steps"]) is type(value)


def test_assignments_add_up() -> None:
    parsed = parse_assignments(["a.b=1", "a.c=2", "a.b=3", "d=4"])
    assert parsed == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize("text", ["search.steps", "=5", "search.steps=", ""])
def test_malformed_assignments(text: str) -> None:
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_assignments([text])


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(SettingsError, match=r"Cannot read .*a\.toml: No such file"):
        load_toml(path)
    path.write_text("steps = 5\n[data]\nlimit = 10\n")
    assert load_toml(path) == {"steps": 5, "data": {"limit": 10}}
    path.write_text("steps = 5\nbatch = ?\n")
    with pytest.raises(SettingsError, match=r"a\.toml is not valid TOML: .*line 2"):
        load_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_toml(path)


@dataclass(frozen=True)
class Chain:
    stages: tuple[dict[str, Any], ...] = ()


def test_tables_without_names() -> None:
    chain = build(Chain, {"stages": [{"stage": "train", "epochs": 3}]})
    assert chain.stages == ({"stage": "train", "epochs": 3},)
    assert build(Chain, to_plain(chain)) == chain
    with pytest.raises(SettingsError, match="stages is a table of settings; got 'train'"):
        build(Chain, {"stages": ["train"]})
