"""Options that several commands share, with the same words for each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esnac.cluster import ClusterSettings
    from esnac.preparation import Choices, Folders

_FOLDERS = {
    "runs": "folder of the runs (default: $ESNAC_HOME/runs, else ./runs)",
    "teachers": "folder of the teachers (default: $ESNAC_HOME/teachers, else ./teachers)",
    "search-spaces": "folder of the search spaces (default: $ESNAC_HOME/search_spaces, "
    "./search_spaces, or those that come with esnac)",
    "data": "folder of the data sets, read or downloaded there (default: $ESNAC_DATA, else ./data)",
}


def add_names(parser: argparse.ArgumentParser) -> None:
    """--network and --dataset."""
    parser.add_argument(
        "--network",
        required=True,
        metavar="NAME",
        help="resnet20, resnet34, vgg19, ... or package.module:callable for one of your own; an "
        "unknown name lists them all",
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="digits, cifar10, cifar100, images:PATH (a folder or archive with one folder per "
        "class) or parquet:PATH",
    )


def add_folders(parser: argparse.ArgumentParser, *names: str) -> None:
    """A --NAME DIR for each of `names`."""
    group = parser.add_argument_group("folders")
    for name in names:
        group.add_argument(f"--{name}", metavar="DIR", help=_FOLDERS[name])


def add_settings(parser: argparse.ArgumentParser, example: str) -> None:
    """--seed and --set."""
    parser.add_argument(
        "--seed", type=natural, metavar="N", help="of all randomness (default: 127)"
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one setting, as in --set {example}; may be repeated",
    )


def add_preset(parser: argparse.ArgumentParser, text: str) -> None:
    """--preset."""
    parser.add_argument(
        "--preset", choices=("quick", "full", "paper"), help=f"{text} (default: quick)"
    )


def add_stages(parser: argparse.ArgumentParser, text: str) -> None:
    """--stages."""
    parser.add_argument(
        "--stages",
        metavar="CHAIN",
        help=f"{text}, as in --stages 'prune(agp, sparsity=0.8), train(epochs=10)'; an unknown "
        "stage lists them all",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto (a GPU if there is one), cpu, cuda or cuda:1 (default: auto)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="processor threads for PyTorch (default: its own choice)",
    )


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """--executor and what belongs to it."""
    group = parser.add_argument_group("parallel work")
    group.add_argument(
        "--executor",
        choices=("serial", "ray"),
        help="serial: one evaluation after the other, here; ray: several at a time, on this "
        "machine or a Ray cluster (default: serial, with --workers or --address: ray)",
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="evaluations at a time (default: as many as there is room for)",
    )
    group.add_argument(
        "--address",
        metavar="WHERE",
        help="a running cluster to join: auto or HOST:PORT (default: one of its own on this "
        "machine, for the time of the run)",
    )
    group.add_argument(
        "--cpus-per-worker",
        type=float,
        metavar="X",
        help="processor cores of one worker (default: 1)",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=float,
        metavar="X",
        help="GPUs of one worker, a fraction to share one: 0.25 (default: 0, evaluates on the CPU)",
    )


def cluster(args: argparse.Namespace) -> ClusterSettings:
    """Where the arguments want the work done. Raises SettingsError for what cannot go there."""
    from esnac.cluster import ClusterSettings
    from esnac.errors import SettingsError

    names = ("workers", "address", "cpus_per_worker", "gpus_per_worker")
    given: dict[str, Any] = {
        name: getattr(args, name) for name in names if getattr(args, name) is not None
    }
    parallel = "workers" in given or "address" in given
    settings = ClusterSettings(executor=args.executor or ("ray" if parallel else "serial"), **given)
    on_gpu = args.device.startswith("cuda")
    if settings.executor == "ray" and on_gpu and not settings.gpus_per_worker:
        raise SettingsError(
            f"--device {args.device} is no device of workers, which would evaluate on the CPU: add "
            "--gpus-per-worker 1, or a share such as 0.25."
        )
    return settings


def folders(args: argparse.Namespace) -> Folders:
    """The folders named by the arguments, found where no argument names one."""
    from esnac import paths
    from esnac.preparation import Folders

    flags = vars(args)
    return Folders(
        runs=paths.runs_folder(flags.get("runs")),
        new_teachers=paths.teachers_folder(flags.get("teachers")),
        teachers=paths.teachers_folders(flags.get("teachers")),
        search_spaces=paths.search_spaces_folder(flags.get("search_spaces"))
        if "search_spaces" in flags
        else None,
        data=paths.data_folder(flags.get("data")),
    )


def choices(args: argparse.Namespace) -> Choices:
    """What the arguments ask for."""
    from esnac.preparation import Choices

    flags = vars(args)
    stages = flags.get("stages")
    chain = [] if stages is None else [f"stages={json.dumps(stages)}"]
    return Choices(
        network=args.network,
        dataset=_absolute(args.dataset),
        seed=args.seed,
        preset=flags.get("preset"),
        file=flags.get("settings"),
        assignments=args.assignments + chain,
    )


def _absolute(dataset: str) -> str:
    """`images:PATH` with an absolute path: a run may be resumed from another folder."""
    kind, colon, path = dataset.partition(":")
    return f"{kind}:{Path(path).expanduser().absolute()}" if colon and path else dataset


def set_up(args: argparse.Namespace) -> None:
    """The process, before anything is computed; obeys --threads."""
    from esnac.runtime import set_up_process

    set_up_process(args.threads)


def amount(text: str) -> float | int:
    """A positive number, with k, M or G for its thousands."""
    scale = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 1)
    try:
        number = float(text if scale == 1 else text[:-1]) * scale
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(
            f"a positive number such as 250k is expected, got {text!r}"
        )
    return int(number) if number.is_integer() else number


def natural(text: str) -> int:
    """A whole number from 0."""
    return _at_least(text, 0)


def positive(text: str) -> int:
    """A whole number from 1."""
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} is expected, got {text!r}")
    return number
