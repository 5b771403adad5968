"""The journal through crashes, damage and rivals; names; what is left when a run cannot be made."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esnac import runs
from esnac.errors import RunError
from esnac.runs import Run

FIGURES = {"params": 10, "macs": 20, "ratio": 0.5}
PROPOSED = {"event": "trial", "trial": 0, "state": "PROPOSED", "step": 0, "moves": {}, **FIGURES}
DONE = {"event": "trial", "trial": 0, "state": "DONE", "accuracy": 0.9, "f": 0.5, "seconds": 1.5}
DONE |= FIGURES
FAILED = {"event": "trial", "trial": 0, "state": "FAILED", "reason": "no luck", "seconds": 1.5}
RUN = {"event": "run", "network": "resnet20", "dataset": "digits", "seed": 1, "engine": "paper"}
RUN |= {"versions": {}}
TEACHER = {"event": "teacher", "accuracy": 0.9, "validation_accuracy": 0.9, "params": 20, "macs": 9}
STAGE = {"event": "stage", "index": 0, "trial": 0, "stage": "train", "accuracy": 0.9, "f": 0.5}
STAGE |= {"validation_accuracy": 0.9, "path": "finalists/0", "seconds": 1.5, **FIGURES}
FAILURE = {"event": "failure", "index": 0, "trial": 0, "stage": "train", "reason": "no luck"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed run with three lines."""
    with Run.create(tmp_path, "a", {"seed": 1}) as run:
        run.append_many([RUN, PROPOSED, DONE])
    return tmp_path / "a"


def journal(path: Path) -> Path:
    return path / "journal.jsonl"


# Names


@pytest.mark.parametrize(
    ("network", "dataset", "name"),
    [
        ("resnet20", "digits", "resnet20-digits-x"),
        ("pkg.mod:fn", "images:/some/path", "pkg.mod_fn-images_some_path-x"),
        ("../../etc", "parquet:C:\\data", "etc-parquet_C_data-x"),
        (":", "n" * 300, f"unnamed-{'n' * 80}-x"),
    ],
)
def test_run_name(network: str, dataset: str, name: str) -> None:
    assert runs.run_name(network, dataset, "x") == name


@pytest.mark.parametrize("suffix", ["", "a/b", "..\\b", "/", "a\nb", "a\0", "s" * 81])
def test_suffix_that_is_refused(suffix: str) -> None:
    with pytest.raises(RunError, match="--suffix"):
        runs.run_name("resnet20", "digits", suffix)


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_name_makes_one_folder_name(network: str, dataset: str) -> None:
    name = runs.run_name(network, dataset, "x")
    assert Path(name).name == name
    assert len(name.encode()) < 200
    assert name[0] != "."


# Making a run


def test_create_writes_settings_and_journal(tmp_path: Path) -> None:
    with Run.create(tmp_path / "new/runs", "a", {"seed": 127, "search": {"rates": (1, 2)}}) as run:
        assert run.path == tmp_path / "new/runs/a"
        assert run.name == "a"
        assert run.settings == {"seed": 127, "search": {"rates": [1, 2]}}
        assert run.events() == []
        assert run.trial_folder(7) == run.path / "trials/0007"
        assert run.finalist_folder(3) == run.path / "finalists/3"
    assert sorted(os.listdir(run.path)) == [".lock", "journal.jsonl", "settings.json"]
    assert os.listdir(tmp_path / "new/runs") == ["a"]


def test_create_never_overwrites(path: Path) -> None:
    before = journal(path).read_bytes()
    with pytest.raises(RunError, match=r"--resume.*--suffix"):
        Run.create(path.parent, "a", {})
    assert journal(path).read_bytes() == before
    assert os.listdir(path.parent) == ["a"]


def test_two_creators_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.create(tmp_path, "a", {}).close()
    monkeypatch.setattr(Run, "check_new", lambda root, name: None)  # the other one came later
    with pytest.raises(RunError, match="--resume"):
        Run.create(tmp_path, "a", {})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("function", ["rename", "replace", "fsync"])
def test_create_leaves_nothing_half_written(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(RunError, match="Cannot make the run .*read-only file system"):
            Run.create(tmp_path, "a", {})
    assert os.listdir(tmp_path) == []


def test_read_only_runs_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(RunError, match="cannot be written"):
            Run.create(tmp_path, "a", {})
        assert os.listdir(tmp_path) == []
    finally:
        tmp_path.chmod(0o755)


def test_a_file_in_place_of_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(RunError, match="Cannot make the run"):
            Run.create(root, "a", {})


def test_check_new_makes_nothing(path: Path) -> None:
    Run.check_new(path.parent / "new/runs", "a")
    Run.check_new(path.parent, "b")
    with pytest.raises(RunError, match="exists"):
        Run.check_new(path.parent, "a")
    assert os.listdir(path.parent) == ["a"]


def test_resume_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(RunError, match="without --resume"):
            Run.resume(tmp_path, name)


# The journal


def test_lines_are_json_objects_with_time_and_event(path: Path) -> None:
    lines = [json.loads(line) for line in journal(path).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run", "trial", "trial"]
    for line in lines:
        time = datetime.fromisoformat(line["time"])
        assert time.utcoffset() == timedelta(0)
        assert len(line["time"]) == len("2026-01-31T12:00:00.123456+00:00")
    assert Run.open(path).events() == lines


def test_numpy_and_paths_are_written_plainly(path: Path) -> None:
    import numpy as np

    with Run.open(path, write=True) as run:
        values = {"accuracy": np.float32(0.5), "params": np.int64(7), "path": Path("finalists/0")}
        run.append_many([{**STAGE, **values}])
        stage = run.events()[-1]
    assert (stage["accuracy"], stage["params"], stage["path"]) == (0.5, 7, "finalists/0")


def test_every_cut_of_the_last_line(path: Path) -> None:
    """Wherever a crash cuts the file: whole lines stay, the torn one goes, appending works."""
    content = journal(path).read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))]
    for size in range(starts[1], len(content) + 1):
        journal(path).write_bytes(content[:size])
        whole = content[:size].count(b"\n") + (size + 1 in starts)  # only the newline is missing
        assert len(Run.open(path).events()) == whole
        assert journal(path).stat().st_size == size, "a reader changes nothing"
        with Run.resume(path.parent, "a") as run:
            run.append("end")
        events = Run.open(path).events()
        assert len(events) == whole + 1
        assert events[-1]["event"] == "end"


def test_last_line_of_zeros_or_broken_text(path: Path) -> None:
    """What a power cut may leave behind."""
    for tail in (b"\0" * 50, b'{"event": "\xff\xfe', b'{"ev'):
        with journal(path).open("ab") as file:
            file.write(tail)
        assert len(Run.open(path).events()) == 3
        Run.open(path, write=True).close()
        assert journal(path).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("tail", [b'{"event": "tri\n', b"\xff\xfe\n", b"\n", b"\0\0\n"])
def test_a_last_line_with_its_newline_was_written_whole(tail: bytes, path: Path) -> None:
    """So what does not read in it is damage, and is not cut off."""
    with journal(path).open("ab") as file:
        file.write(tail)
    before = journal(path).read_bytes()
    for write in (False, True):
        with pytest.raises(RunError, match="line 4 is not JSON"):
            Run.open(path, write=write).events()
    assert journal(path).read_bytes() == before


@pytest.mark.parametrize(
    "event",
    [RUN, TEACHER, {**PROPOSED, "trial": 1}, {"event": "finalists", "trials": [0]}, STAGE, FAILURE],
    ids=lambda event: event["event"],
)
def test_an_incomplete_line_names_itself_and_the_key(event: dict[str, Any], path: Path) -> None:
    before = journal(path).read_text()
    journal(path).write_text(before + json.dumps(event) + "\n")
    assert Run.open(path).events()[-1] == event
    checked = ("event", "trial", "state") if event["event"] == "trial" else ("event",)
    for key in event.keys() - checked:
        rest = {name: value for name, value in event.items() if name != key}
        journal(path).write_text(before)
        with (
            Run.open(path, write=True) as run,
            pytest.raises(RunError, match=f"New line: .*{key!r}"),
        ):
            run.append_many([rest])
        journal(path).write_text(before + json.dumps(rest) + "\n")
        with pytest.raises(RunError, match=rf"journal\.jsonl, line 4 .*lacks {key!r}.*--suffix"):
            Run.open(path).events()


@pytest.mark.parametrize("event", [{"event": "of the future"}, {**TEACHER, "file": None, "new": 1}])
def test_more_than_is_known_may_be_said(event: dict[str, Any], path: Path) -> None:
    with Run.open(path, write=True) as run:
        run.append_many([event])
        assert {**run.events()[-1], **event} == run.events()[-1]


@pytest.mark.parametrize("end", [DONE, FAILED])
def test_the_end_of_a_trial_needs_its_keys(end: dict[str, Any], path: Path) -> None:
    before = "".join(json.dumps(event) + "\n" for event in (RUN, TEACHER, PROPOSED))
    journal(path).write_text(before + json.dumps(end) + "\n")
    assert len(Run.open(path).events()) == 4
    for key in end.keys() - {"event", "trial", "state"}:
        rest = {name: value for name, value in end.items() if name != key}
        journal(path).write_text(before + json.dumps(rest) + "\n")
        with pytest.raises(RunError, match=f"line 4 .*lacks {key!r}"):
            Run.open(path, write=True)


def test_a_batch_of_which_a_crash_left_the_first_lines(tmp_path: Path) -> None:
    """Wherever the write of run and teacher stopped, the whole lines read and appending works."""
    Run.create(tmp_path, "a", {}).close()
    batch = "".join(json.dumps(event) + "\n" for event in (RUN, TEACHER))
    for size in range(len(batch)):
        journal(tmp_path / "a").write_text(batch[:size])
        with Run.resume(tmp_path, "a") as run:
            whole = [RUN][: size > len(json.dumps(RUN)) - 1]
            whole += [TEACHER][: size > len(batch) - 2]
            assert run.events() == whole
            run.append("end")
            assert len(run.events()) == len(whole) + 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"event": "tri', "is not JSON"),
        ("", "is not JSON"),
        ("[1, 2]", "is no JSON object"),
        ('{"time": "now"}', "has no 'event'"),
        ('{"event": 3}', "has no 'event'"),
    ],
)
def test_damage_in_the_middle_names_the_line(line: str, what: str, path: Path) -> None:
    lines = journal(path).read_text().splitlines()
    journal(path).write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    before = journal(path).read_bytes()
    for write in (False, True):
        with pytest.raises(RunError, match=f"line 2 {what}.*--suffix"):
            Run.open(path, write=write).events()
    assert journal(path).read_bytes() == before
    with pytest.raises(RunError, match="line 2"):  # a failed opening keeps no lock
        Run.open(path, write=True)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{**DONE, "trial": 1}], "trial 1 is DONE, but it was never PROPOSED"),
        ([DONE], "trial 0 is DONE, but it was DONE already"),
        ([{**DONE, "state": "FAILED"}], "trial 0 is FAILED, but it was DONE already"),
        ([PROPOSED], "trial 0 is PROPOSED, but it was DONE already"),
        ([{**PROPOSED, "trial": 1}] * 2, "trial 1 is PROPOSED, but it was PROPOSED already"),
        ([{**PROPOSED, "state": "LOST"}], "'LOST', expected PROPOSED, DONE or FAILED"),
        ([{**PROPOSED, "trial": "1"}], "needs its number"),
        ([{**PROPOSED, "trial": True}], "needs its number"),
    ],
)
def test_states_out_of_order(events: list[dict[str, Any]], message: str, path: Path) -> None:
    before = journal(path).read_bytes()
    with Run.open(path, write=True) as run, pytest.raises(RunError, match=message):
        run.append_many(events)
    assert journal(path).read_bytes() == before
    with journal(path).open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    with pytest.raises(RunError, match=rf"line \d.*{message}"):
        Run.open(path).events()


def test_a_refused_batch_changes_nothing(path: Path) -> None:
    with Run.open(path, write=True) as run:
        with pytest.raises(RunError):
            run.append_many([{**PROPOSED, "trial": 1}, DONE])
        run.append_many([{**PROPOSED, "trial": 1}, {**DONE, "trial": 1}])
        assert len(run.events()) == 5


def test_nan_is_never_written(path: Path) -> None:
    with Run.open(path, write=True) as run:
        with pytest.raises(ValueError):
            run.append_many([{**STAGE, "accuracy": float("nan")}])
        assert len(run.events()) == 3


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half(handle: int, content: Any) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, bytes(content)[: len(content) // 2])

    with Run.open(path, write=True) as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(RunError, match="no space left"):
                run.append("end")
        assert len(run.events()) == 3
        run.append("end")
        assert len(run.events()) == 4


def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, bytes(content)[:7]))
    with Run.open(path, write=True) as run:
        run.append("end")
    assert Run.open(path).events()[-1]["event"] == "end"


def test_one_writer_at_a_time(path: Path) -> None:
    first = Run.resume(path.parent, "a")
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        Run.resume(path.parent, "a")
    assert len(Run.open(path).events()) == 3, "reading is free"
    with pytest.raises(RunError, match="not open for writing"):
        Run.open(path).append("end")
    first.close()
    first.close()
    Run.resume(path.parent, "a").close()


def test_a_killed_process_keeps_its_lines_and_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from esnac.runs import Run\n"
        f"PROPOSED = {PROPOSED!r}\n"
        "run = Run.create(Path(sys.argv[1]), 'a', {})\n"
        "for i in range(10**6):\n"
        "    run.append_many([PROPOSED | {'trial': i}])\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    with pytest.raises(RunError, match=f"written by process {process.pid}"):
        Run.resume(tmp_path, "a")
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    with Run.resume(tmp_path, "a") as run:
        numbers = [event["trial"] for event in run.events()]
        run.append("end")
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > (int(rest[-1]) if rest else 19), "an acknowledged line was lost"


def test_compare() -> None:
    old = {"seed": 1, "search": {"steps": 20, "rates": [1, 2]}, "path": "/a"}
    assert runs.compare(old, {**old, "search": {"steps": 20, "rates": (1, 2)}}) == {}
    new = {"seed": 1, "search": {"steps": 5, "rates": [1, 2]}, "path": Path("/b"), "new": True}
    assert runs.compare(old, new) == {
        "new": (None, True),
        "path": ("/a", "/b"),
        "search.steps": (20, 5),
    }


def test_find_and_list(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-run").mkdir()
    (tmp_path / ".new-1").mkdir()
    (tmp_path / ".new-1/settings.json").touch()
    assert runs.list_runs(tmp_path) == [path]
    assert runs.list_runs(tmp_path / "missing") == []
    assert runs.find_run(tmp_path, "a") == path
    monkeypatch.chdir(tmp_path)
    assert runs.find_run(tmp_path / "missing", "a") == path
    Run.create(tmp_path, "resnet20-digits-0", {}).close()
    with pytest.raises(RunError, match=r"Did you mean 'resnet20-digits-0'\? Runs there: a, resnet"):
        runs.find_run(tmp_path, "resnet20-digit")
    with pytest.raises(RunError, match="no runs there"):
        runs.find_run(tmp_path / "missing", "")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_settings(content: str, path: Path) -> None:
    (path / "settings.json").write_text(content)
    with pytest.raises(RunError, match=r"settings\.json"):
        Run.open(path).settings  # noqa: B018


def test_importing_needs_no_torch() -> None:
    code = (
        "import sys, esnac.paths, esnac.runs, esnac.report.summary, esnac.report.tables, "
        "esnac.report.progress, esnac.report.tensorboard, esnac.cli.stat, esnac.cli.show\n"
        "print([name for name in ('torch', 'rich', 'tensorboardX') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
