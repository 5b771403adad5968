"""The command line: `python -m esnac` and `esnac`.

Each command is a file with `add_parser(subparsers)` and `run(args) -> int`. Nothing heavy is
imported before `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from esnac.cli import compress, finish, score, search, sensitivity, show, stat, teacher
from esnac.errors import EsnacError

COMMANDS = {
    "teacher": teacher,
    "search": search,
    "finish": finish,
    "compress": compress,
    "sensitivity": sensitivity,
    "stat": stat,
    "show": show,
    "score": score,
}

FAILED = 2
INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0: done. 2: an error that the user can act on, told in one message on stderr; its traceback
    comes with --debug or ESNAC_DEBUG=1. 130: interrupted. 141: the reader of stdout went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("ESNAC_DEBUG", "") not in ("", "0")
    try:
        args = build_parser().parse_args(words)
        debug = debug or getattr(args, "debug", False)
        code = COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if debug:
            raise
        return _leave_pipe()
    except (EsnacError, OSError) as error:
        if debug:
            raise
        hint = "" if isinstance(error, EsnacError) else " (--debug shows where)"
        print(f"esnac: error: {error}{hint}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\nesnac: interrupted. {_how_to_resume(words)}", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.command` names the command."""
    parser = _Parser(
        prog="esnac",
        description="Compress a trained network: search smaller ones, train the best, keep files "
        "that reload anywhere.",
        epilog="A first run: esnac search --network resnet20 --dataset digits",
    )
    parser.add_argument("--version", action=_Version, help="print the version and leave")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    for each in (parser, *subparsers.choices.values()):  # before the command or after it
        each.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,  # else the command's default would undo `esnac --debug`
            help="show the traceback of an error (also: ESNAC_DEBUG=1)",
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises EsnacError where argparse would print its usage and exit; guesses no options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # told here, where `prog` names the command
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise EsnacError(f"{message}. See: {self.prog} --help")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from esnac import __version__

        print(f"esnac {__version__}")
        parser.exit()


def _how_to_resume(words: Sequence[str]) -> str:
    if {"search", "compress"} & {*words} and "--resume" not in words:
        words = [*_without(words, "--warm-start"), "--resume"]
    return f"What was finished is kept; to go on: {shlex.join(['esnac', *words])}"


def _without(words: Sequence[str], option: str) -> list[str]:
    """The words but for an option and its value."""
    kept, left = [], iter(words)
    for word in left:
        if word == option:
            next(left, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return kept


def _leave_pipe() -> int:
    # Python flushes stdout once more on its way out, and would complain then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED
