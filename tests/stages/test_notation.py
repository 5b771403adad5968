"""Chains of stages as text."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esnac.errors import SettingsError
from esnac.stages.notation import parse

WORDS = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(
    lambda word: word not in ("true", "false", "stage", "method")
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = NUMBERS | st.booleans() | WORDS | st.text()
TABLES = st.builds(
    lambda stage, method, settings: {"stage": stage, **method, **settings},
    WORDS,
    st.just({}) | st.builds(lambda word: {"method": word}, WORDS),
    st.dictionaries(WORDS, PLAIN | st.lists(PLAIN, max_size=3), max_size=4),
)


def written(table: dict) -> str:
    """A stage as a person might write it, all texts quoted."""
    given = {key: value for key, value in table.items() if key not in ("stage", "method")}
    words = [table["method"]] if "method" in table else []
    words += [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return f"{table['stage']}({', '.join(words)})" if words else table["stage"]


@settings(deadline=None)
@given(st.lists(TABLES, min_size=1, max_size=4))
def test_what_is_written_is_read(tables: list[dict]) -> None:
    assert parse(", ".join(map(written, tables))) == tables


def test_an_example() -> None:
    text = """prune(agp, sparsity=0.8, layers=[conv1, block*.weight, "a, b"]),
              quantize(method=lsq, weights=4, first=false), export"""
    assert parse(text) == [
        {
            "stage": "prune",
            "method": "agp",
            "sparsity": 0.8,
            "layers": ["conv1", "block*.weight", "a, b"],
        },
        {"stage": "quantize", "method": "lsq", "weights": 4, "first": False},
        {"stage": "export"},
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["the name of a stage", "at the start", "the end"]),
        ("prune,", ["the name of a stage", "after 'prune ,'"]),
        ("prune(", ["a method or KEY=VALUE"]),
        ("prune(agp", ["')' is expected", "the end"]),
        ("prune(agp, 0.8)", ["KEY=VALUE is expected", "'0.8'"]),
        ("prune(sparsity=)", ["a value is expected", "')'"]),
        ("prune(agp) quantize", ["a comma or the end", "'quantize'"]),
        ("prune(layers=[a, [b]])", ["a value is expected", "'['"]),
        ("prune(agp, x=1, x=2)", ["'x' is given twice in prune"]),
        ("prune(agp, method=nm)", ["'method' is given twice"]),
        ("prune(2x=1)", ["'2x' is no name"]),
        ('prune(x="a)', ["not closed"]),
        (r'prune(x="\q")', ["no quoted text"]),
    ],
)
def test_what_does_not_read(text: str, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        parse(text)
    for part in ["--stages", *parts]:
        assert part in str(error.value)
