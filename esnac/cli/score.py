"""`esnac score PATH`: the MicroNet score of a student, layer by layer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esnac.cli import options

if TYPE_CHECKING:
    from esnac.deployment.micronet import Description, Score, Task
    from esnac.graphs.network import StudentNetwork

#: Written down once more, since importing `esnac.deployment` would make --help slow.
TASKS = ("imagenet", "cifar100", "wikitext103")
ACCUMULATIONS = ("fp32", "fixed", "tree")
#: Stages that leave a float student beside a file of 8 bits, and tell the accuracy of the file.
INT8_FILES = ("export-onnx_int8", "export-mnn_int8", "export-all")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "score",
        help="MicroNet score of a student",
        description="Print the storage, multiplies and additions of a student and its score by "
        "the rules of the MicroNet challenge, layer by layer. Lower is better.",
        epilog="Example: esnac score resnet20-cifar100-127 --task cifar100",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="folder of a student, or a run's name or folder for its best finalist",
    )
    parser.add_argument("--task", choices=TASKS, required=True, help="whose normalisers to use")
    parser.add_argument(
        "--accumulation",
        choices=ACCUMULATIONS,
        default="fp32",
        help="additions of 32 bits, of integers in one register, or of an adder tree; the latter "
        "two are for implementations that really add so (default: fp32)",
    )
    parser.add_argument(
        "--freebie",
        action="store_true",
        help="count weights and multiplies at 16 bits; refused once anything is quantised",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all layers into FILE")
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument(
        "--accuracy",
        type=float,
        metavar="A",
        help="test accuracy as a fraction (default: what the run's journal says)",
    )
    quality.add_argument("--perplexity", type=float, metavar="P", help="for wikitext103")
    assume = parser.add_argument_group("assumptions, where the student itself says nothing")
    assume.add_argument(
        "--weight-bits", type=_bits, metavar="N", help="of convolutions and linear layers"
    )
    assume.add_argument(
        "--activation-bits", type=_bits, metavar="N", help="of what these layers read"
    )
    options.add_folders(parser, "runs")
    return parser


def run(args: argparse.Namespace) -> int:
    from esnac.deployment import micronet
    from esnac.deployment.micronet.table import to_csv
    from esnac.files import write_text
    from esnac.quantization.store import load

    task = micronet.task(args.task)
    entry = _find(args)
    quality = _quality(args, task, entry)
    network = load(entry.folder)
    found = micronet.score(
        network.graph,
        task,
        _assumed(micronet.describe(network), network, args),
        accumulation=args.accumulation,
        freebie=args.freebie,
        quality=quality,
    )
    print(_text(found, args, entry, quality))
    for warning in (found.warning, _other_data(task, entry) if args.accuracy is None else None):
        if warning is not None:
            print(f"esnac: warning: {warning} It is no entry of the challenge.", file=sys.stderr)
    if entry.stage in INT8_FILES and args.accuracy is None and args.weight_bits is None:
        print(
            "esnac: warning: The accuracy is that of the exported INT8 file, the score that of the "
            "float student. --weight-bits 8 --activation-bits 8 counts the file.",
            file=sys.stderr,
        )
    if args.csv is not None:
        write_text(args.csv, to_csv(found))
        print(f"written: {args.csv}")
    return 0


@dataclass(frozen=True)
class _Entry:
    """A student's folder, and what the journal of its run knows of it."""

    folder: Path
    accuracy: float | None = None
    dataset: str | None = None
    stage: str | None = None


def _find(args: argparse.Namespace) -> _Entry:
    """The student that PATH means. Raises RunError when there is none."""
    from esnac import paths, runs
    from esnac.errors import RunError
    from esnac.graphs.student import ARCHITECTURE
    from esnac.report.summary import summarise

    given = Path(args.path)
    if (given / ARCHITECTURE).is_file():
        folder = given.resolve()
        parents = [path for path in folder.parents if (path / runs.JOURNAL).is_file()]
        return _of_run(parents[0], folder) if parents else _Entry(folder)
    if given.is_dir() and not (given / runs.JOURNAL).is_file():
        raise RunError(f"{given} is neither the folder of a student nor that of a run.")
    path = runs.find_run(paths.runs_folder(args.runs), args.path)
    opened = runs.Run.open(path)
    best = summarise(opened.events(), opened.name, path).best_finalist()
    if best is None or best.path is None:
        raise RunError(f"{opened.name} has no trained finalist. Give the folder of a student.")
    return _of_run(path, Path(best.path).resolve())


def _of_run(run: Path, folder: Path) -> _Entry:
    """With the test accuracy of the stage that left the student in `folder`, if one did."""
    from esnac.report.summary import summarise
    from esnac.runs import Run

    summary = summarise(Run.open(run).events(), run.name, run)
    for finalist in summary.finalists:
        for stage in finalist.stages:
            if stage.get("path") and Path(stage["path"]).resolve() == folder:
                return _Entry(folder, stage.get("accuracy"), summary.dataset, stage.get("stage"))
    return _Entry(folder)


def _quality(args: argparse.Namespace, task: Task, entry: _Entry) -> float | None:
    """Accuracy or perplexity, whichever the task is about, if it is known."""
    from esnac.errors import EsnacError

    accuracy: float | None = args.accuracy
    perplexity: float | None = args.perplexity
    if task.perplexity:
        if accuracy is not None:
            raise EsnacError(f"{task.name} is judged by perplexity: give --perplexity instead.")
        return perplexity
    if perplexity is not None:
        raise EsnacError(f"{task.name} is judged by accuracy: give --accuracy instead.")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise EsnacError(f"--accuracy is a fraction from 0 to 1, as in 0.8; got {accuracy:g}.")
    return entry.accuracy if accuracy is None else accuracy


def _other_data(task: Task, entry: _Entry) -> str | None:
    """A sentence if the student was trained on a registered data set that is not the task's."""
    if entry.dataset is None or ":" in entry.dataset or entry.dataset == task.name:
        return None
    return f"This student was trained on {entry.dataset}, not on {task.name}."


def _assumed(
    description: Description, network: StudentNetwork, args: argparse.Namespace
) -> Description:
    """With the bits of the command line for tensors that have none."""
    from esnac.deployment.micronet.folding import PRODUCTS
    from esnac.errors import EsnacError

    bits = dict(description.bits)
    for flag, part in (("weight_bits", "weight"), ("activation_bits", "input")):
        value = getattr(args, flag)
        if value is None:
            continue
        layers = [layer.name for layer in network.graph.layers if layer.kind in PRODUCTS]
        free = [f"{name}.{part}" for name in layers if f"{name}.{part}" not in bits]
        if not free:
            raise EsnacError(
                f"--{flag.replace('_', '-')} changes nothing: the student says how many bits it "
                "has. Leave the option out."
            )
        bits |= dict.fromkeys(free, value)
    return replace(description, bits=bits)


def _text(found: Score, args: argparse.Namespace, entry: _Entry, quality: float | None) -> str:
    from esnac.deployment.micronet import PUBLISHED
    from esnac.deployment.micronet.table import HEADER, number, table_rows
    from esnac.report.tables import columns

    task = found.task
    claims = [f"accumulation {found.accumulation}", f"freebie {'yes' if found.freebie else 'no'}"]
    for flag in ("weight_bits", "activation_bits"):
        if getattr(args, flag) is not None:
            claims.append(f"{flag.replace('_', ' ')} {getattr(args, flag)} (assumed)")
    sums = f"{number(found.multiplies)} multiplies + {number(found.additions)} additions"
    lines = [
        f"{entry.folder}: {', '.join(claims)}",
        columns(HEADER, table_rows(found)),
        f"storage     {number(found.storage)} of {task.storage:,.0f}: "
        f"{found.storage / task.storage:.6g}",
        f"operations  {sums} of {task.operations:,.0f}: {found.operations / task.operations:.6g}",
        f"score       {found.value:.6g} on {task.name}",
        _quality_line(task, entry, quality, args.accuracy is None),
    ]
    lines += [
        f"published   {row.score:.6g}  {row.entry} ({row.arithmetic})"
        for row in PUBLISHED
        if row.task == task.name
    ]
    return "\n".join(lines)


def _quality_line(task: Task, entry: _Entry, quality: float | None, from_run: bool) -> str:
    if task.perplexity:
        value = "unknown (--perplexity)" if quality is None else f"{quality:.10g}"
        return f"perplexity  {value}; an entry needs at most {task.target:g}"
    where = f" on {entry.dataset}" if from_run and entry.dataset else ""
    value = "unknown (--accuracy)" if quality is None else f"{100 * quality:.6g} %{where}"
    return f"accuracy    {value}; an entry needs {100 * task.target:g} %"


def _bits(text: str) -> int:
    number = options.positive(text)
    if number > 32:
        raise argparse.ArgumentTypeError(f"at most 32 bits are meant, got {text!r}")
    return number
