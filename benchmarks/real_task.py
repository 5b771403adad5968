"""Engines on a real task: CIFAR-10, ResNet-20 teacher, 48 evaluations, 2 epochs of 10,000 images.

Runs the product's own command for every engine and seed, one thread each, some at a time; what is
there already is gone on with or left alone, so it may be stopped at any time and called again.
Prints a table of the seeds that all engines have ended (mean of the best f so far after so many
evaluations, on validation) and, on its last line, one JSON object: per engine the best f of each of
these seeds, `mean` and `spread` (standard deviation), and how many of its searches are `complete`.

The teacher's weights come from --teacher; it was trained by `esnac teacher --network resnet20
--dataset cifar10` on all 45,000 training images, so on nine of ten of the images that are the
validation split here: for all engines alike, but f here is no measure of how students generalise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _machine import print_machine

STEPS, BATCH = 6, 8
SETTINGS = {
    "search.steps": STEPS,
    "search.batch": BATCH,
    "search.pool": 1000,
    "data.limit": 11_000,
    "data.validation": 1_000,
    "evaluation.epochs": 2,
    "finish.finalists": 1,
    "finish.training.epochs": 1,
}
#: The published kernel; the preset would take a small one.
PAPER = {"surrogate.hidden": 64, "surrogate.layers": 4, "surrogate.steps": 100}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    print_machine(1, "torch", "gpytorch", "botorch")
    jobs = [(engine, seed) for seed in args.seeds for engine in args.engines]
    if not args.table:
        with ThreadPoolExecutor(args.workers) as pool:
            codes = list(pool.map(lambda job: search(*job, args), jobs))
        if any(codes):
            print(f"Some searches failed: see {args.folder}/*.txt", file=sys.stderr)
    found = {engine: ended_searches(engine, args) for engine in args.engines}
    seeds = [seed for seed in args.seeds if all(seed in best for best in found.values())]
    figures = {engine: figure(best, seeds) for engine, best in found.items()}
    print(f"Seeds: {', '.join(map(str, seeds)) or 'none that all have ended'}.\n")
    counts = range(BATCH, STEPS * BATCH + 1, BATCH)
    print(f"| engine | {' | '.join(map(str, counts))} | spread | best f by seed |")
    print("| --- " * (STEPS + 3) + "|")
    for engine, shown in figures.items():
        curves = [found[engine][seed] for seed in seeds]
        means = [mean([max(curve[:count]) for curve in curves]) for count in counts]
        values = [*means, shown["spread"]]
        cells = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
        print(f"| {engine} | {cells} | {' '.join(f'{f:.3f}' for f in shown['best_f'])} |")
    print(json.dumps(figures))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", default=["esnac", "random", "paper"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="of the runs")
    parser.add_argument("--teacher", type=Path, required=True, help="weights, a .safetensors file")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--workers", type=int, default=2, help="searches at a time (default 2)")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser.parse_args(argv)


def search(engine: str, seed: int, args: argparse.Namespace) -> int:
    """Runs or goes on with one search; its exit code."""
    done = ended(engine, seed, args)
    if done:
        return 0
    settings = SETTINGS | (PAPER if engine == "paper" else {})
    command = [sys.executable, "-m", "esnac", "search", "--network", "resnet20"]
    command += ["--dataset", "cifar10", "--engine", engine, "--seed", str(seed), "--threads", "1"]
    command += ["--suffix", f"{engine}-{seed}", "--runs", str(args.folder)]
    command += ["--teacher", str(args.teacher)]
    command += ["--data", str(args.data)] if args.data else []
    command += ["--resume"] if done is not None else []
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / f"{engine}-{seed}.txt").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode


def journal(engine: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]] | None:
    path = args.folder / f"resnet20-cifar10-{engine}-{seed}" / "journal.jsonl"
    if not path.exists():
        return None
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def ended(engine: str, seed: int, args: argparse.Namespace) -> bool | None:
    """Whether all of its evaluations are there; None where it has not begun."""
    rows = journal(engine, seed, args)
    return None if rows is None else len(rewards(rows)) == STEPS * BATCH


def rewards(rows: list[dict[str, Any]]) -> list[float]:
    """f of every evaluation, in the order of the proposals."""
    done = (row for row in rows if row.get("state") == "DONE")
    return [row["f"] for row in sorted(done, key=lambda row: row["trial"])]


def ended_searches(engine: str, args: argparse.Namespace) -> dict[int, list[float]]:
    """The rewards by seed, of the searches that have all their evaluations."""
    found = {seed: rewards(journal(engine, seed, args) or []) for seed in args.seeds}
    return {seed: values for seed, values in found.items() if len(values) == STEPS * BATCH}


def figure(found: dict[int, list[float]], seeds: list[int]) -> dict[str, Any]:
    best = [max(found[seed]) for seed in seeds]
    spread = statistics.stdev(best) if len(best) > 1 else None
    return {"best_f": best, "mean": mean(best), "spread": spread, "complete": len(found)}


def mean(values: list[float]) -> float | None:
    return statistics.mean(values) if values else None


if __name__ == "__main__":
    sys.exit(main())
