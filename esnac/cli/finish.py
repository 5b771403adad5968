"""`esnac finish RUN`: end the search where it stands and train the best students fully."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from esnac.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "finish",
        help="full training of a run's best students",
        description="End a run's search where it stands and train its best students fully. A "
        "search does this by itself at its end; finalists that are trained already are not "
        "trained again.",
        epilog="Example: esnac finish resnet20-digits-127",
    )
    parser.add_argument("name", metavar="RUN", help="a run's name or folder")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="the weights that the search was given with --teacher, if it was",
    )
    options.add_stages(
        parser, "the whole chain that they go through then (what is done of it is not repeated)"
    )
    options.add_machine(parser)
    options.add_cluster(parser)
    options.add_folders(parser, "runs", "teachers", "data")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import api
    from esnac.cli import stat
    from esnac.runs import find_run

    options.set_up(args)
    folders = options.folders(args)
    path = find_run(folders.runs, args.name)
    api.finish(
        path,
        folders,
        device=args.device,
        weights=args.teacher,
        stages=args.stages,
        cluster=options.cluster(args),
    )
    return stat.show_runs([path])
