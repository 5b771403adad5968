"""`esnac teacher`: train a network by its recipe and keep it as a teacher."""

from __future__ import annotations

import argparse
from typing import Any

from esnac.cli import options


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "teacher",
        help="train a network to be compressed",
        description="Train a network by its recipe (recipe.toml in the teacher's folder, else the "
        "data set's own) and write card.json and weights.safetensors to "
        "teachers/<network>-<dataset>.",
        epilog="Example: esnac teacher --network resnet20 --dataset cifar10",
    )
    options.add_names(parser)
    parser.add_argument(
        "--force", action="store_true", help="replace a teacher that is there already"
    )
    options.add_settings(parser, "teacher.epochs=30")
    options.add_machine(parser)
    options.add_folders(parser, "teachers", "data")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import api

    options.set_up(args)
    card, folder = api.make_teacher(
        options.choices(args), options.folders(args), device=args.device, force=args.force
    )
    print(
        f"{folder}: test accuracy {100 * card.accuracy:.2f} %, "
        f"validation {100 * card.validation_accuracy:.2f} %, "
        f"{card.params:,} parameters, {card.macs:,} MACs, {card.seconds:.0f} s of training"
    )
    return 0
