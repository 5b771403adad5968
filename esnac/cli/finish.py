"""`esnac finish RUN`: end the search where it stands and train the best students fully."""

from __future__ import annotations

import argparse
from typing import Any

from esnac.cli import options
from esnac.errors import EsnacError


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
    options.add_machine(parser)
    options.add_folders(parser, "runs", "teachers", "data")
    return parser


def run(args: argparse.Namespace) -> int:
    raise EsnacError("not wired yet")
