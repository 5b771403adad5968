"""`esnac sensitivity PATH`: how much each layer of a student minds being pruned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esnac.cli import options

if TYPE_CHECKING:
    from esnac.data import DataSettings
    from esnac.pruning.sensitivity import Sensitivity


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sensitivity",
        help="accuracy of a student with one layer pruned at a time",
        description="Prune each weight of a student by magnitude to 0, 10, ... 90 %, one at a "
        "time and without training, and print the validation accuracy at each level and the "
        "highest level that costs no more than --drop.",
        epilog="Example: esnac sensitivity runs/resnet20-digits-127/finalists/0 --dataset digits "
        "--schedule plan.toml --epochs 12",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a student")
    parser.add_argument("--dataset", required=True, metavar="NAME", help="as for esnac search")
    parser.add_argument(
        "--layers", action="append", metavar="PATTERN", help="only these layers; may be repeated"
    )
    parser.add_argument(
        "--drop",
        type=float,
        default=0.01,
        metavar="X",
        help="accuracy that a layer may cost, as a fraction (default: 0.01)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures into FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (svg, png or pdf)")
    parser.add_argument(
        "--schedule",
        type=Path,
        metavar="FILE",
        help="write the proposed levels as a schedule of gradual pruning",
    )
    parser.add_argument(
        "--epochs",
        type=options.positive,
        default=12,
        metavar="N",
        help="length of that schedule, of which two thirds prune (default: 12)",
    )
    options.add_machine(parser)
    options.add_folders(parser, "data")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac import files
    from esnac.pruning.sensitivity import end_of, kind_of_plot, plot, require_drop
    from esnac.report.tables import columns

    options.set_up(args)
    require_drop(args.drop)
    if args.plot is not None:
        kind_of_plot(args.plot)
    if args.schedule is not None:
        end_of(args.epochs)
    found = _analyse(args)
    head, *rows = found.table(args.drop)
    print(columns(head, rows))
    print(f"validation accuracy when dense: {100 * found.dense:.2f} %")
    if args.csv is not None:
        files.write_text(args.csv, found.to_csv())
    if args.plot is not None:
        plot(found, args.plot)
    if args.schedule is not None:
        files.write_text(args.schedule, found.to_schedule(args.epochs, args.drop))
    return 0


def _analyse(args: argparse.Namespace) -> Sensitivity:
    from esnac import data as data_room
    from esnac import paths
    from esnac.pruning.sensitivity import analyse
    from esnac.runtime import resolve_device
    from esnac.stages.measure import load_student
    from esnac.training import accuracy

    device = resolve_device(args.device)
    student = load_student(args.path).to(device)
    folder = paths.data_folder(args.data)
    data = data_room.load(args.dataset, folder, _data_settings(args.path)).to(device)
    return analyse(
        student,
        lambda network: accuracy(network, data.validation, data),
        layers=tuple(args.layers or ("*",)),
    )


def _data_settings(student: Path) -> DataSettings:
    """Those of the run that the student lies in, so that it sees the images of its training."""
    from esnac.data import DataSettings
    from esnac.runs import JOURNAL, Run
    from esnac.settings import build

    for folder in student.resolve().parents:
        if (folder / JOURNAL).is_file():
            return build(DataSettings, Run.open(folder).settings["data"], where=str(folder))
    return DataSettings()
