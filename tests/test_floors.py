"""Reads the imports of the package: they go down only.

Imports inside functions and under TYPE_CHECKING count as well: a room may not know what lies above.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

#: From the ground up. A room is a folder or a file of the package.
FLOORS = (
    {"errors", "settings", "files", "runtime", "group", "paths", "objective"},
    {"data", "networks", "graphs", "search_spaces", "teachers", "runs", "journal"}
    | {"executors", "cluster"},
    {"training", "surrogate", "distillation", "quantization", "pruning", "deployment"},
    {"search", "stages", "report"},
    {"preparation", "session", "api"},
    {"cli"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: Floors whose rooms know nothing of each other.
APART = (2, 3)

#: The package itself opens its public names lazily, and __main__ only calls the command line.
OUTSIDE = {"", "__main__"}

Sources = Mapping[str, str]


def room(module: str) -> str:
    """ "esnac.graphs.trace" -> "graphs", "esnac" -> ""."""
    return module.removeprefix("esnac").removeprefix(".").partition(".")[0]


def imports(module: str, sources: Sources) -> Iterator[str]:
    """The modules of the package that `module` imports, anywhere in its text."""
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = [name for name in inside if name != "esnac.__version__"]
            names = [name if name in sources else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "esnac")


def faults(sources: Sources) -> list[str]:
    """What breaks the rules, one sentence each."""
    found = []
    for module in sources:
        own = room(module)
        if own in OUTSIDE:
            continue
        if own not in FLOOR_OF:
            found.append(f"{module}: {own} has no floor")
            continue
        for other in sorted({room(name) for name in imports(module, sources)} - {own}):
            if other in OUTSIDE:
                if own != "cli":
                    found.append(f"{module} imports the package itself")
            elif FLOOR_OF.get(other, -1) > FLOOR_OF[own]:
                found.append(f"{module} imports {other}, which is above it")
            elif FLOOR_OF.get(other) == FLOOR_OF[own] and FLOOR_OF[own] in APART:
                found.append(f"{module} imports {other}, a room of the same floor")
            elif other == "paths" and own != "cli":
                found.append(f"{module} imports paths, which only the command line asks")
    return found


def cycle(sources: Sources) -> list[str] | None:
    """A circle of imports between files, or else between rooms."""
    files = {name: set(imports(name, sources)) - {name} for name in sources if room(name)}
    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    for graph in (files, rooms):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1]
            return circle
    return None


@pytest.fixture(scope="module")
def sources(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted((root / "esnac").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        found[module] = path.read_text(encoding="utf-8")
    return found


def test_imports_go_down(sources: dict[str, str]) -> None:
    assert len(sources) > 30
    assert not faults(sources)


def test_no_circles(sources: dict[str, str]) -> None:
    assert cycle(sources) is None


@pytest.mark.parametrize(
    ("made_up", "fault"),
    [
        ({"esnac.runs": "import esnac.search.loop"}, "runs imports search, which is above it"),
        ({"esnac.runs": "def f():\n    from esnac import api"}, "runs imports api, which is above"),
        ({"esnac.training.loop": "from esnac.surrogate import fit"}, "a room of the same floor"),
        ({"esnac.api": "from esnac import paths"}, "only the command line asks"),
        ({"esnac.graphs.trace": "from esnac import trace"}, "imports the package itself"),
        ({"esnac.shed": ""}, "shed has no floor"),
    ],
)
def test_each_rule_can_be_broken(made_up: dict[str, str], fault: str) -> None:
    known = dict.fromkeys(["esnac", "esnac.api", "esnac.paths", "esnac.search.loop"], "")
    assert any(fault in found for found in faults(known | made_up))


def test_what_is_allowed() -> None:
    made_up = {
        "esnac": "from esnac.api import run_search",
        "esnac.paths": "from esnac.errors import EsnacError",
        "esnac.errors": "",
        "esnac.cli.search": "from esnac import paths",
        "esnac.graphs.moves": "import torch\nfrom esnac.graphs.space import Space",
        "esnac.graphs.space": "",
    }
    assert faults(made_up) == []
    assert cycle(made_up) is None


def test_circles_are_found() -> None:
    files = {"esnac.data.a": "import esnac.data.b", "esnac.data.b": "import esnac.data.a"}
    assert set(cycle(files) or ()) == {"esnac.data.a", "esnac.data.b"}
    rooms = {
        "esnac.data.a": "import esnac.runs",
        "esnac.runs": "import esnac.data.b",
        "esnac.data.b": "",
    }
    assert set(cycle(rooms) or ()) == {"data", "runs"}
