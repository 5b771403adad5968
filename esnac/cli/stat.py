"""`esnac stat [RUN ...]`: the published columns and the finalists of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esnac.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "stat",
        help="table of runs and their finalists",
        description="Print what the journals of runs say.",
    )
    parser.add_argument(
        "names", metavar="RUN", nargs="*", help="a run's name or folder (default: all runs)"
    )
    parser.add_argument(
        "--format",
        choices=("text", "markdown", "csv", "json"),
        default="text",
        help="default: text",
    )
    options.add_folders(parser, "runs")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import paths, runs
    from esnac.errors import RunError

    root = paths.runs_folder(args.runs)
    if args.runs and not root.is_dir():
        raise RunError(f"--runs {args.runs}: there is no folder {root}.")
    folders = [runs.find_run(root, name) for name in args.names] or runs.list_runs(root)
    if not folders and args.format in ("text", "markdown"):
        print(f"No runs in {root}.")
        return 0
    return show_runs(folders, args.format)


def show_runs(folders: Sequence[Path], form: str = "text") -> int:
    """Prints the tables of these run folders."""
    from esnac.report import summary, tables
    from esnac.runs import Run

    summaries = [
        summary.summarise(Run.open(folder).events(), folder.name, folder) for folder in folders
    ]
    print(tables.render(summaries, form))
    return 0
