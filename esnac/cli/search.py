"""`esnac search`: compress a network, from the teacher to fully trained students."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from esnac.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "search",
        help="search smaller networks and train the best fully",
        description="Find and train much smaller versions of a network. A teacher is trained first "
        "if there is none. Everything is kept in runs/<network>-<dataset>-<suffix>; "
        "an interrupted run goes on with --resume.",
        epilog="Example: esnac search --network resnet20 --dataset digits",
    )
    options.add_names(parser)
    parser.add_argument(
        "--suffix",
        metavar="WORD",
        help="end of the run's name, to tell runs apart (default: the seed)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run of this name where it stopped"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="trained weights of the network, a state_dict in a .safetensors or .pt file",
    )
    parser.add_argument(
        "--preset",
        choices=("quick", "paper"),
        help="quick: a first look in minutes; paper: the published budget (default: quick)",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="a TOML file of settings, on top of the preset",
    )
    options.add_settings(parser, "search.steps=5")
    options.add_machine(parser)
    options.add_folders(parser, "runs", "teachers", "search-spaces", "data")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import api
    from esnac.cli import stat

    options.set_threads(args)
    folders = options.folders(args)
    path = api.start(
        options.choices(args),
        folders,
        suffix=args.suffix,
        device=args.device,
        resume=args.resume,
        weights=args.teacher,
    )
    return stat.show_runs([path])
