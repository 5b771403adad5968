"""What a run leaves for later ones, and how it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esnac import Searcher
from esnac.errors import EsnacError, RunError, SettingsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.runs import Run
from esnac.search.earlier import TEACHER, Earlier, save_teacher, space_of
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings

Search = Callable[..., list[dict]]
SPACE = SpaceSettings(tied_by="dependency", minimum=2, removal_rates=(0.2,))


@pytest.fixture
def earlier(other_graph: ArchGraph) -> Earlier:
    """Twelve students of another network than the tiny one."""
    space = space_of(other_graph, SPACE)
    drawn = sample(space, SPACE, 12, np.random.default_rng(0))
    moves = tuple(space.moves(drawn, row) for row in range(12))
    return Earlier(other_graph, SPACE, 0.8, moves, tuple(0.3 + 0.04 * row for row in range(12)))


@pytest.fixture
def run(
    other_graph: ArchGraph, make_searcher: Callable[..., Searcher], searched: Search, tmp_path: Path
) -> Path:
    """The folder of a search of six students, of which the second failed and the last is open."""
    searcher = make_searcher("random", teacher=other_graph, space=SPACE, steps=2)
    rows = searched(searcher)
    with Run.create(tmp_path, "tiny-made-up-1", {"network": "tiny"}) as run:
        run.append("run", network="tiny", dataset="made up", seed=1, engine="random", versions={})
        save_teacher(run.path, other_graph, SPACE, 0.9)
        done = [row for row in rows if row["state"] == "DONE"]
        failed = {**done[1], "state": "FAILED", "reason": "no memory"}
        proposed = [row for row in rows if row["state"] == "PROPOSED"]
        run.append_many([*proposed, done[0], failed, *done[2:-1]])
        return run.path


def test_the_space_is_what_the_settings_say(other_graph: ArchGraph) -> None:
    space = space_of(other_graph, SPACE)
    assert space.num_tied == len(space.groups)
    free = ~space.frozen
    assert space.kept_at(np.zeros((1, len(space.groups))))[0, free].tolist() == [2] * free.sum()


def test_a_file_reads_back_as_it_was(earlier: Earlier, tmp_path: Path) -> None:
    earlier.save(tmp_path / "earlier.json")
    again = Earlier.load(tmp_path / "earlier.json")
    assert again == earlier
    assert again.candidates().keys() == earlier.candidates().keys()


def test_accuracies_as_logarithms(earlier: Earlier) -> None:
    """Over the teacher's; below half of guessing (1/6) they mean the same."""
    found = Earlier(earlier.graph, SPACE, 0.8, earlier.moves[:3], (0.8, 0.4, 0.01)).log_ratio()
    np.testing.assert_allclose(found, [0, math.log(0.5), math.log(1 / 6 / 0.8)], atol=1e-12)


def test_of_a_run_the_finished_trials_count(run: Path, other_graph: ArchGraph) -> None:
    found = Earlier.of_run(run)
    events = Run.open(run).events()
    done = [event for event in events if event.get("state") == "DONE"]
    assert [row["trial"] for row in done] == [0, 2, 3, 4]
    assert found.accuracy == tuple(row["accuracy"] for row in done)
    proposed = {row["trial"]: row["moves"] for row in events if row.get("state") == "PROPOSED"}
    assert [moves.to_plain() for moves in found.moves] == [proposed[n] for n in (0, 2, 3, 4)]
    assert (found.graph, found.settings, found.teacher_accuracy) == (other_graph, SPACE, 0.9)


def test_a_run_that_left_no_teacher(run: Path) -> None:
    (run / TEACHER).unlink()
    with pytest.raises(RunError, match="teacher.json: .* needs a run of this version"):
        Earlier.of_run(run)
    with pytest.raises(RunError, match="Cannot start warm"):
        Earlier.of_run(run / "nowhere")


def test_a_run_of_another_format(run: Path) -> None:
    content = json.loads((run / TEACHER).read_text())
    (run / TEACHER).write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(RunError, match="format 99, this version reads 1"):
        Earlier.of_run(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}'])
def test_a_damaged_file(run: Path, content: str) -> None:
    (run / TEACHER).write_text(content)
    with pytest.raises(EsnacError, match="teacher.json does not describe"):
        Earlier.of_run(run)


@pytest.mark.parametrize("key", ["teacher_accuracy", "trials"])
def test_a_file_that_lacks_a_part(earlier: Earlier, key: str, tmp_path: Path) -> None:
    path = tmp_path / "earlier.json"
    earlier.save(path)
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"earlier.json .*" + key):
        Earlier.load(path)


def test_a_run_without_a_finished_trial(other_graph: ArchGraph, tmp_path: Path) -> None:
    with Run.create(tmp_path, "empty", {}) as run:
        save_teacher(run.path, other_graph, SPACE, 0.9)
        with pytest.raises(RunError, match="no finished evaluation to start from"):
            Earlier.of_run(run.path)


def test_moves_that_do_not_fit_the_teacher(run: Path, graph: ArchGraph) -> None:
    save_teacher(run, graph, SPACE, 0.9)
    with pytest.raises(SettingsError, match="another network"):
        Earlier.of_run(run)


def test_a_warm_search_with_another_teacher(
    earlier: Earlier, make_searcher: Callable[..., Searcher], searched: Search
) -> None:
    """It proposes by what it knows, from the first batch on, and to its end."""
    cold, warm = (make_searcher("esnac", earlier=known) for known in (None, earlier))
    assert len(earlier.graph) != len(warm.graph)
    rows = [searched(searcher) for searcher in (cold, warm)]
    assert [len(part) for part in rows] == [24, 24]
    first, second = ({trial.moves for trial in s.trials[:3]} for s in (cold, warm))
    assert first != second


def test_the_accuracies_of_the_earlier_search_matter(
    earlier: Earlier, make_searcher: Callable[..., Searcher]
) -> None:
    other = Earlier(earlier.graph, SPACE, 0.8, earlier.moves, earlier.accuracy[::-1])
    steps = {"first_steps": 30, "pool": 300}
    first, second = (
        [trial.moves for trial in make_searcher("esnac", earlier=known, **steps).ask(3)]
        for known in (earlier, other)
    )
    assert first != second


@pytest.mark.parametrize("engine", ["paper", "random", "evolution", "features", "tpe"])
def test_other_engines_cannot_start_warm(
    engine: str, earlier: Earlier, make_searcher: Callable[..., Searcher]
) -> None:
    with pytest.raises(SettingsError, match=f"{engine} cannot start warm"):
        make_searcher(engine, earlier=earlier)
