"""The command line as a whole: exit codes, messages, and how little `--help` loads."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esnac import cli
from esnac.errors import EsnacError

HEAVY = ("torch", "numpy", "rich", "networkx", "ray")


def process(*words: str, code: str | None = None, **variables: str) -> subprocess.Popen[str]:
    start = ["-c", code] if code else ["-m", "esnac"]
    return subprocess.Popen(
        [sys.executable, *start, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        cwd=Path(__file__).resolve().parents[2],
    )


def outcome(*words: str, code: str | None = None, **variables: str) -> tuple[int, str, str]:
    with process(*words, code=code, **variables) as started:
        out, err = started.communicate(timeout=60)
        return started.returncode, out, err


def replace_run(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    def run(args: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(cli.COMMANDS["stat"], "run", run)


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys, contextlib, io\n"
        "from esnac.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    main([*sys.argv[1:], '--help'])\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(loaded, 'usage: esnac' in out.getvalue())"
    )
    assert outcome(*command, code=code) == (0, "[] True\n", "")


def test_help_names_all_commands() -> None:
    code, out, _err = outcome("--help")
    assert code == 0
    assert all(command in out for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "arguments are required: COMMAND. See: esnac --help"),
        (["serch"], "invalid choice: 'serch' (choose from"),
        (["search"], "arguments are required: --network, --dataset. See: esnac search --help"),
        (["search", "--network", "a", "--dataset", "b", "--seed", "-1"], "a whole number from 0"),
        (["search", "--network", "a", "--dataset", "b", "--threads", "x"], "number from 1"),
        (["search", "--network", "a", "--dataset", "b", "--preset", "x"], "choose from"),
        (["search", "--net", "a", "--dataset", "b"], "required: --network"),  # no abbreviations
        (["stat", "--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["stat", "--nonsense"], "unrecognized arguments: --nonsense. See: esnac stat --help"),
        (["--nonsense", "stat"], "unrecognized arguments: --nonsense. See: esnac --help"),
    ],
)
def test_bad_words(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("esnac: error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_errors_have_no_traceback_and_exit_2() -> None:
    code, out, err = outcome("show", "no-such-run", "--runs", "no-such-folder", ESNAC_DEBUG="0")
    assert (code, out) == (2, "")
    assert err.startswith("esnac: error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "variable"),
    [(["--debug", "stat"], ""), (["stat", "--debug"], ""), (["stat"], "1")],
)
def test_debug_shows_the_traceback(
    words: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_run(monkeypatch, EsnacError("told"))
    monkeypatch.setenv("ESNAC_DEBUG", variable)
    with pytest.raises(EsnacError, match="told"):
        cli.main(words)


def test_system_errors_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_run(monkeypatch, OSError(28, "No space left on device", "journal.jsonl"))
    assert cli.main(["stat"]) == 2
    err = capsys.readouterr().err
    assert "No space left on device: 'journal.jsonl' (--debug shows where)" in err


def test_faults_of_our_own_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["stat"])


def test_an_interrupt_tells_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS["search"], "run", interrupt)
    words = ["search", "--network", "resnet20", "--dataset", "images:my photos"]
    command = "esnac search --network resnet20 --dataset 'images:my photos' --resume\n"
    assert cli.main(words) == 130
    assert capsys.readouterr().err.endswith(command)
    assert cli.main([*words, "--resume"]) == 130
    assert capsys.readouterr().err.endswith(command)
    for warm in (["--warm-start", "earlier"], ["--warm-start=earlier"]):  # not for --resume
        assert cli.main([words[0], *warm, *words[1:]]) == 130
        assert capsys.readouterr().err.endswith(command)


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys\n"
        "from esnac import cli\n"
        "cli.COMMANDS['stat'].run = lambda args: print('x' * 10**6) or 0\n"
        "sys.exit(cli.main(['stat']))"
    )
    with process(code=code) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == ""
        assert started.wait(60) == 141


def test_success_and_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_run(monkeypatch, None)
    assert cli.main(["stat"]) == 0
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code in (0, None)
    from esnac import __version__

    assert capsys.readouterr().out == f"esnac {__version__}\n"


def test_defaults_of_search() -> None:
    words = ["search", "--network", "a", "--dataset", "b", "--search-spaces", "s"]
    args = cli.build_parser().parse_args([*words, "--set", "x=1", "--set", "y=2"])
    assert args.assignments == ["x=1", "y=2"]
    assert args.search_spaces == "s"
    assert (args.device, args.resume, args.threads) == ("auto", False, None)
    # None: not chosen, so that --resume keeps what the run was started with.
    assert (args.seed, args.preset, args.suffix) == (None, None, None)
