"""`esnac stat [RUN ...]`: the published columns and the finalists of runs."""

from __future__ import annotations

import argparse
from typing import Any


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
    parser.add_argument("--runs", metavar="DIR", help="folder of the runs")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import paths, runs
    from esnac.errors import RunError
    from esnac.report import summary, tables

    root = paths.runs_folder(args.runs)
    if args.runs and not root.is_dir():
        raise RunError(f"--runs {args.runs}: there is no folder {root}.")
    folders = [runs.find_run(root, name) for name in args.names] or runs.list_runs(root)
    summaries = [
        summary.summarise(runs.Run.open(folder).events(), folder.name, folder) for folder in folders
    ]
    if not summaries and args.format in ("text", "markdown"):
        print(f"No runs in {root}.")
    else:
        print(tables.render(summaries, args.format))
    return 0
