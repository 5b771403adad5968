"""Chains of stages in runs: rows, folders, resuming, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import esnac
from esnac import api, preparation
from esnac.api import SearchResult
from esnac.data import DataSet
from esnac.errors import RunError, SettingsError, TrainingError
from esnac.graphs import student as students
from esnac.objective import compression, reward
from esnac.report.epochs import EpochProgress
from esnac.session import given, opening
from esnac.training import accuracy

CHAIN = "train(epochs=2, learning_rate=0.01), clear(smallest, share=0.25), train(scratch, epochs=3)"
SEARCH = {
    "search": {"engine": "random", "steps": 1, "batch": 2},
    "evaluation": {"epochs": 1},
    "finish": {"finalists": 2, "training": {"epochs": 2}},
}


def events(path: Path) -> list[dict[str, Any]]:
    """The journal without what differs between two equal runs."""
    lines = (path / "journal.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows]


def stages(path: Path) -> list[dict[str, Any]]:
    return [row for row in events(path) if row["event"] == "stage"]


@pytest.fixture
def compressed(model: nn.Module, shades: DataSet, tmp_path: Path) -> SearchResult:
    return esnac.compress(model, shades, CHAIN, runs=tmp_path, name="whole", device="cpu")


def test_each_link_has_its_folder_and_its_row(compressed: SearchResult, shades: DataSet) -> None:
    rows = stages(compressed.path)
    assert [(row["link"], row["stage"], row["path"]) for row in rows] == [
        (0, "source", "finalists/0"),
        (1, "train-finetune", "finalists/0/1-train-finetune"),
        (2, "clear-smallest", "finalists/0/2-clear-smallest"),
        (3, "train-scratch", "finalists/0/3-train-scratch"),
    ]
    for row in rows:
        folder = compressed.path / row["path"]
        student = students.load(folder)
        assert accuracy(student, shades.test, shades) == row["accuracy"]
        assert row["bytes"] == (folder / students.WEIGHTS).stat().st_size
        assert not (folder / "checkpoint").exists()
        assert student.preparation is not None
        assert (row["index"], row["trial"], row["ratio"], row["f"]) == (0, None, 0.0, 0.0)
    assert rows[2]["details"] == {"cleared": 72, "layers": [{"name": "head", "zeros": 72}]}
    cleared = students.load(compressed.path / rows[2]["path"])
    assert int((list(cleared.parameters())[-2] == 0).sum()) == 72, "a quarter of 6 x 16 x 3"
    assert events(compressed.path)[-1]["event"] == "end"


def test_the_network_itself_is_source_and_teacher(
    compressed: SearchResult, model: nn.Module, shades: DataSet
) -> None:
    kinds = [row["event"] for row in events(compressed.path)]
    assert kinds == ["run", "teacher", "stage", "finalists", "stage", "stage", "stage", "end"]
    first, teacher = events(compressed.path)[:2]
    assert (first["engine"], first["objective"], first["network"]) == (None, None, "Sequential")
    assert teacher["accuracy"] == stages(compressed.path)[0]["accuracy"]
    source = students.load(compressed.path / "finalists" / "0")
    for mine, theirs in zip(source.parameters(), model.parameters(), strict=True):
        assert mine.equal(theirs)
    best = compressed.best_student()
    assert accuracy(best, shades.test, shades) == stages(compressed.path)[-1]["accuracy"]


def test_an_interrupted_chain_goes_on_where_it_stopped(
    compressed: SearchResult,
    model: nn.Module,
    shades: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted after the second of three epochs of link 3, and after the first of link 1."""
    seen: list[int] = []
    honest = EpochProgress.update

    def update(self: EpochProgress, record: Any) -> None:
        honest(self, record)
        seen.append(record.epoch)
        if len(seen) in (1, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochProgress, "update", update)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            esnac.compress(
                model, shades, CHAIN, runs=tmp_path, name="broken", device="cpu", resume=resume
            )
    done = esnac.compress(
        model, shades, CHAIN, runs=tmp_path, name="broken", device="cpu", resume=True
    )
    assert seen == [0, 1, 0, 1, 2], "no epoch twice"
    assert events(done.path) == events(compressed.path)
    before = events(done.path)
    esnac.compress(model, shades, CHAIN, runs=tmp_path, name="broken", device="cpu", resume=True)
    assert events(done.path) == before


def test_a_failed_link_ends_its_chain_and_is_tried_again(
    model: nn.Module, shades: DataSet, tmp_path: Path
) -> None:
    chain = "clear(smallest, share=0), train(epochs=1)"
    reason = "finalist 0 in clear-smallest: Nothing would be cleared"
    for resume in (False, True):
        with pytest.raises(TrainingError, match=reason):
            esnac.compress(
                model, shades, chain, runs=tmp_path, name="a", device="cpu", resume=resume
            )
    failed = [row for row in events(tmp_path / "a") if row["event"] == "failure"]
    assert [(row["index"], row["link"], row["stage"]) for row in failed] == [
        (0, 1, "clear-smallest")
    ] * 2
    assert [row["link"] for row in stages(tmp_path / "a")] == [0]
    assert events(tmp_path / "a")[-1]["event"] == "failure"


def test_other_stages_are_refused_on_resume(
    compressed: SearchResult, model: nn.Module, shades: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="started with other settings .stages"):
        esnac.compress(
            model, shades, "train", runs=tmp_path, name="whole", device="cpu", resume=True
        )
    with pytest.raises(SettingsError, match="Nothing to do: name stages"):
        esnac.compress(model, shades, runs=tmp_path, name="none", device="cpu")
    assert not (tmp_path / "none").exists()


def test_finalists_of_a_search_go_through_the_chain(
    model: nn.Module, shades: DataSet, tmp_path: Path
) -> None:
    settings = SEARCH | {"stages": "clear(smallest), train(epochs=1)"}
    found = esnac.run_search(model, shades, settings, runs=tmp_path, name="a", device="cpu")
    rows = stages(found.path)
    assert [(row["index"], row["link"], row["stage"]) for row in rows] == [
        *[(0, 0, "train"), (0, 1, "clear-smallest"), (0, 2, "train-finetune")],
        *[(1, 0, "train"), (1, 1, "clear-smallest"), (1, 2, "train-finetune")],
    ]
    teacher = events(found.path)[1]
    for row in rows:
        ratio = compression(row["params"], teacher["params"])
        assert row["ratio"] == ratio
        assert row["f"] == reward(ratio, row["accuracy"], teacher["accuracy"])
    kept = json.loads((found.path / "settings.json").read_text())["stages"]
    assert kept[0] == {"stage": "clear", "method": "smallest", "share": 0.5}
    assert kept[1]["epochs"] == 1
    finalist = found.summary.finalists[1]
    assert str(finalist.path).endswith("finalists/1/2-train-finetune")
    again = esnac.run_search(
        model, shades, settings, runs=tmp_path, name="a", device="cpu", resume=True
    )
    assert stages(again.path) == rows


def test_finish_adds_stages_to_an_ended_run(
    compressed: SearchResult, shades: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.data_room, "load", lambda *_: shades)
    place = preparation.Folders(tmp_path, tmp_path)
    before = events(compressed.path)
    api.finish(compressed.path, place, device="cpu", stages=CHAIN)
    assert events(compressed.path) == before, "all of that is done"
    longer = CHAIN + ", clear(smallest)"
    for _ in range(2):
        api.finish(compressed.path, place, device="cpu", stages=longer)
        added = events(compressed.path)[len(before) :]
        assert [row["event"] for row in added] == ["stages", "stage", "end"]
        assert added[1]["path"] == "finalists/0/4-clear-smallest"
    for other in ("train(epochs=1)", CHAIN):
        with pytest.raises(RunError, match="went through train-finetune, clear-smallest"):
            api.finish(compressed.path, place, device="cpu", stages=other)
    api.finish(compressed.path, place, device="cpu")
    assert len(events(compressed.path)) == len(before) + 3


def test_an_older_run_without_chains_is_finished(
    model: nn.Module, shades: DataSet, tmp_path: Path
) -> None:
    """Its settings have no `stages`, its rows no `link`."""
    found = esnac.run_search(model, shades, SEARCH, runs=tmp_path, name="a", device="cpu")
    settings = json.loads((found.path / "settings.json").read_text())
    del settings["stages"]
    (found.path / "settings.json").write_text(json.dumps(settings))
    journal = found.path / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    new = ("link", "bytes", "details")
    rows = [{key: value for key, value in row.items() if key not in new} for row in rows]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = events(found.path)
    again = esnac.run_search(
        model, shades, SEARCH, runs=tmp_path, name="a", device="cpu", resume=True
    )
    assert events(found.path) == before
    assert [len(finalist.stages) for finalist in again.summary.finalists] == [1, 1]


def test_a_chain_that_cannot_work_is_refused_at_once_and_an_older_one_can_be_changed(
    model: nn.Module, shades: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.data_room, "load", lambda *_: shades)
    chain = "clear(smallest), quantize(post), slim(l1)"
    place = preparation.Folders(tmp_path, tmp_path)

    def compress() -> None:
        esnac.compress(model, shades, chain, runs=tmp_path, name="a", device="cpu")

    with pytest.raises(SettingsError, match="number 3 .*quantised already .number 2"):
        compress()
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as older:
        for room in (opening, given):
            older.setattr(room, "check_order", lambda *_: None)
        with pytest.raises(TrainingError, match="slim-l1: .* is quantised already"):
            compress()
    with pytest.raises(SettingsError, match="number 3 .*quantised already"):
        api.finish(tmp_path / "a", place, device="cpu", stages=f"{chain}, train")
    api.finish(tmp_path / "a", place, device="cpu", stages="clear(smallest), quantize(post)")
    assert [row["link"] for row in stages(tmp_path / "a")] == [0, 1, 2]
    assert events(tmp_path / "a")[-1]["event"] == "end"


def test_a_quantised_student_is_not_quantised_again(
    model: nn.Module, shades: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.data_room, "load", lambda *_: shades)
    place = preparation.Folders(tmp_path, tmp_path)
    run = esnac.compress(model, shades, "quantize(post)", runs=tmp_path, name="a", device="cpu")
    few = run.path / stages(run.path)[-1]["path"]
    choices = preparation.Choices("resnet20", "digits", assignments=['stages="train, slim(l1)"'])
    told = r"number 2 \(slim-l1\): the student is quantised already \(.*1-quantize-post\)"
    with pytest.raises(SettingsError, match=told):
        api.rehearse(choices, place, weights=few)
    with pytest.raises(SettingsError, match=told):
        api.start_compression(choices, place, device="cpu", weights=few)
    assert not (tmp_path / "resnet20-digits-compress").exists()
