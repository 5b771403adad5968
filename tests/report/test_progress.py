"""Plain lines, the bar on a terminal, and the time left."""

from __future__ import annotations

import io

import pytest

from esnac.report.progress import Progress, clock_text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_one_per_trial() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress.update(0, 4, 1, None)
        clock.now += 30
        progress.update(1, 4, 1, 0.5)
        progress.update(1, 4, 2, 0.5)
        clock.now += 10
        progress.update(2, 4, 2, 0.91234)
        progress.update(4, 4, "end", 0.91234)
    assert stream.getvalue().splitlines() == [
        "search: step 1, 0/4 evaluations, best f -, ? left",
        "search: step 1, 1/4 evaluations, best f 0.5000, 1:30 left",
        "search: step 2, 2/4 evaluations, best f 0.9123, 0:40 left",
        "search: step end, 4/4 evaluations, best f 0.9123, 0:00 left",
    ]


def test_replayed_trials_do_not_make_it_look_fast() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress.update(100, 160, 13, 0.9)
        clock.now += 60
        progress.update(101, 160, 13, 0.9)
    assert stream.getvalue().splitlines()[1].endswith("59:00 left")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.update(3, 4, 2, 0.9)
    shown = stream.getvalue()
    assert "search: step 2" in shown
    assert "3/4  best f 0.9000" in shown
    assert "\x1b[" in shown


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("training", stream=stream) as progress:
        progress.update(3, 4, 2, 0.9)
    assert stream.getvalue() == "training: step 2, 3/4 evaluations, best f 0.9000, ? left\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_stdout_stays_clean(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with Progress() as progress:
        progress.update(1, 2, 1, None)
        print("a result")
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "step 1" in captured.err


def test_an_error_passes_through_and_the_cursor_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n\x1b[?25h")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (62, "1:02"), (11045, "3:04:05")]
)
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
