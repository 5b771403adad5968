"""`esnac search`: compress a network, from the teacher to fully trained students."""

from __future__ import annotations

import argparse
import json
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
    options.add_preset(
        parser,
        "quick: a first look in minutes; full: the published budget with esnac's own engine; "
        "paper: budget and engine as published",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="a TOML file of settings, on top of the preset",
    )
    options.add_stages(parser, "what the best students go through after full training")
    _add_goal(parser)
    options.add_settings(parser, "search.steps=5")
    options.add_machine(parser)
    options.add_cluster(parser)
    options.add_folders(parser, "runs", "teachers", "search-spaces", "data")
    return parser


def _add_goal(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to look for, and how")
    group.add_argument(
        "--engine",
        choices=("esnac", "paper", "features", "evolution", "tpe", "random"),
        help="esnac: embedding and Gaussian processes; paper: as published; the others are "
        "baselines (default: esnac, with --preset paper: paper)",
    )
    group.add_argument(
        "--objective",
        choices=("f", "accuracy", "pareto"),
        help="f: c (2 - c) a, as published; accuracy: within limits; pareto: the best trade-offs "
        "(default: f)",
    )
    group.add_argument(
        "--measures",
        metavar="NAMES",
        help="what --objective pareto weighs: accuracy and one or two of params, macs, bytes, "
        "latency (default: accuracy,params)",
    )
    group.add_argument(
        "--warm-start",
        metavar="RUN",
        help="learn from the evaluations of an earlier run as well, of another teacher too",
    )
    for name, unit in _LIMITS.items():
        group.add_argument(f"--max-{name}", type=options.amount, metavar="N", help=unit)


_LIMITS = {
    "params": "most parameters of a student, such as 100k or 1.5M",
    "macs": "most multiply-accumulates for one image",
    "bytes": "most bytes of float32 weights and running statistics",
    "latency": "most milliseconds for one image on this device, as a sum over its layers",
}


def goal(args: argparse.Namespace) -> list[str]:
    """The flags of the goal as assignments of settings."""
    found = {"search.engine": args.engine, "objective.kind": args.objective}
    if args.measures is not None:
        names = [name.strip() for name in args.measures.split(",")]
        found["objective.measures"] = json.dumps(names)
    for name in _LIMITS:
        found[f"objective.max_{name}"] = getattr(args, f"max_{name}")
    return [f"{key}={value}" for key, value in found.items() if value is not None]


def run(args: argparse.Namespace) -> int:
    from esnac import api
    from esnac.cli import stat
    from esnac.runs import find_run

    args.assignments = args.assignments + goal(args)
    options.set_up(args)
    folders = options.folders(args)
    earlier = find_run(folders.runs, args.warm_start) if args.warm_start else None
    path = api.start(
        options.choices(args),
        folders,
        suffix=args.suffix,
        device=args.device,
        resume=args.resume,
        weights=args.teacher,
        warm_start=earlier,
        cluster=options.cluster(args),
    )
    return stat.show_runs([path])
