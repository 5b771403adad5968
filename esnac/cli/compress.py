"""`esnac compress`: a trained network through a chain of stages, without a search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from esnac.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "compress",
        help="take a trained network through stages, without a search",
        description="Take a trained network through a chain of stages. It is its own teacher. "
        "Everything is kept in runs/<network>-<dataset>-<suffix>; an interrupted run goes on with "
        "--resume, more stages are added by esnac finish.",
        epilog="Example: esnac compress --network resnet20 --dataset digits "
        "--stages 'train(epochs=10)'",
    )
    options.add_names(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="trained weights of the network, a state_dict in a .safetensors or .pt file, or the "
        "folder of a student (default: the teacher of this name, from `esnac teacher`)",
    )
    options.add_stages(parser, "what the network goes through")
    parser.add_argument(
        "--suffix", metavar="WORD", help="end of the run's name (default: compress)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run of this name where it stopped"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would fire at which epoch, and leave"
    )
    options.add_preset(
        parser,
        "how stages train unless they say so themselves; quick: a first look in minutes; full or "
        "paper: the published 300 epochs",
    )
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="a TOML file of settings, also of [[stages]]"
    )
    options.add_settings(parser, "finish.training.learning_rate=0.01")
    options.add_machine(parser)
    options.add_cluster(parser)
    options.add_folders(parser, "runs", "teachers", "data")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import api
    from esnac.cli import stat

    options.set_up(args)
    if args.dry_run:
        return _rehearse(args)
    path = api.start_compression(
        options.choices(args),
        options.folders(args),
        suffix=args.suffix,
        device=args.device,
        resume=args.resume,
        weights=args.weights,
        cluster=options.cluster(args),
    )
    return stat.show_runs([path])


def _rehearse(args: argparse.Namespace) -> int:
    from esnac import api
    from esnac.report.tables import columns

    found = api.rehearse(options.choices(args), options.folders(args), weights=args.weights)
    for name, rows in found.items():
        print(name)
        print(columns(rows[0], rows[1:]) if rows else "(nothing in it depends on the epoch)")
    return 0
