"""Quality of the search engines on made-up landscapes: equal evaluations, paired seeds.

A landscape gives every student of a real teacher graph a true accuracy by a formula with random
constants (capacity per layer, depth per stage, missing norms and activations, bottlenecks, skips),
and noisy measurements of it. An engine spends its evaluations; of its four highest noisy rewards
the best true f counts. Regret is the distance from the best f that a long noise-free search finds.
Instances 0 to 15 served to tune the engine, 0 to 3 most of all; 16 to 19 did not.

Prints a table and, on its last line, one JSON object:

    regret_ratio            mean final regret over that of random search, per network
    wins                    instances (of all networks) on which the engine beats random search
    versus_evolution, versus_tpe, versus_features, versus_paper
                            mean final regret over theirs, all networks; null for an engine that was
                            left out ("paper" is, unless --engines names it: it takes hours)
    evaluations_to_random   median number of evaluations after which random search's final regret
                            is reached
    rank40, rank40_top      Spearman correlation of predicted and true f on 250 unseen students
                            after 40 random observations: of all, and of the best 30 %
    coverage90              share of the next batch's measured accuracies inside their 90 %
                            intervals, after 48 evaluations
    hypervolume_ratio       --objective pareto (accuracy, params): mean true hypervolume of what
                            was evaluated over that of random search, first network, and the
                            least ratio of an instance (hypervolume_least)
    unseen                  the same figures of the instances from 16 on alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from _machine import print_machine

TEACHER = 0.75
NOISE = 0.015
BATCH = 8
#: Instances below this number served to tune the engine.
TUNED = 16


class Landscape:
    """True accuracy of students of one teacher graph; random constants from `seed`."""

    def __init__(self, space: Any, seed: int) -> None:
        rng = np.random.default_rng((seed, 2611))
        self.space = space
        layers = space.graph.layers
        self.convs = np.array([n for n, layer in enumerate(layers) if layer.kind == "conv"])
        kinds = np.array([layer.kind for layer in layers])
        full = space.identity()
        _, makes = space.widths(full.kept)
        self.full = makes[0]
        count = len(self.convs)
        weight = rng.lognormal(0, 0.8, count)
        self.width_loss = 0.03 * rng.lognormal(0, 0.3) * weight / weight.sum()
        self.power = rng.uniform(1.5, 2.2)
        # What follows a convolution: its norm and activation, if they are missing.
        self.norms = np.flatnonzero(kinds == "batch_norm")
        self.activations = np.flatnonzero((kinds == "relu") | (kinds == "relu6"))
        self.norm_loss = rng.exponential(0.012, len(self.norms))
        self.activation_loss = rng.exponential(0.010, len(self.activations))
        areas = np.array([layers[n].out_shape[-1] for n in self.convs])
        self.stages = [np.flatnonzero(areas == area) for area in np.unique(areas)[::-1]]
        self.depth_loss = rng.uniform(0.05, 0.25, len(self.stages))
        self.depth_power = rng.uniform(1.2, 3.0, len(self.stages))
        self.bottleneck = rng.uniform(0.03, 0.10)
        self.narrow = rng.uniform(8, 24)
        self.skip_gain = rng.uniform(0.02, 0.06)
        self.skip_worth = rng.normal(0, 0.004, len(space.skips))
        self.pairs = rng.uniform(0, 3, (len(self.stages), len(self.stages)))

    def accuracy(self, candidates: Any) -> np.ndarray:
        """True accuracies (N)."""
        _, makes = self.space.widths(candidates.kept)
        present = ~candidates.removed
        here = present[:, self.convs]
        halvings = np.log2(self.full[self.convs] / makes[:, self.convs])
        loss = (self.width_loss * halvings**self.power * here).sum(axis=1)
        stage_loss = []
        for number, stage in enumerate(self.stages):
            missing = 1 - here[:, stage].mean(axis=1)
            stage_loss.append(self.depth_loss[number] * missing ** self.depth_power[number])
        depth = np.stack(stage_loss, axis=1)
        loss += depth.sum(axis=1) + np.einsum("ns,st,nt->n", depth, self.pairs, depth)
        loss += (self.norm_loss * ~present[:, self.norms]).sum(axis=1)
        loss += (self.activation_loss * ~present[:, self.activations]).sum(axis=1)
        narrowest = np.where(here, makes[:, self.convs], 10**6).min(axis=1)
        loss += self.bottleneck * np.maximum(np.log2(self.narrow / narrowest), 0)
        skips = candidates.skips.sum(axis=1)
        loss += candidates.skips @ self.skip_worth + 0.0015 * np.maximum(skips - 8, 0) ** 1.2
        loss -= self.skip_gain * (1 - np.exp(-skips / 4)) * (depth.sum(axis=1) > 0.02)
        return TEACHER * np.maximum(np.exp(-np.maximum(loss, -0.03)), 0.02)

    def f(self, candidates: Any) -> np.ndarray:
        """True rewards (N)."""
        from esnac.graphs.cost import candidate_costs, cost

        params, _ = candidate_costs(self.space, candidates)
        c = 1 - params / cost(self.space.graph).params
        return c * (2 - c) * self.accuracy(candidates) / TEACHER

    def best(self) -> float:
        """The largest f that a long evolution on the true values finds."""
        from esnac.graphs.space import joined
        from esnac.search.sampler import Source, sample
        from esnac.search_spaces import SpaceSettings

        rng = np.random.default_rng(1)
        source = Source(self.space, SpaceSettings())
        pool = sample(self.space, SpaceSettings(), 2000, rng)
        for _ in range(150):
            f = self.f(pool)
            pool = pool.select(np.argsort(-f, kind="stable")[:50])
            pool = joined([pool, source.vary(pool, 500, rng)])
        return float(self.f(pool).max())


@lru_cache
def space_of(network: str) -> Any:
    from esnac import networks
    from esnac.graphs.space import Space
    from esnac.graphs.trace import trace

    return Space(trace(networks.build(network, 100), (3, 32, 32)))


@dataclass(frozen=True)
class Result:
    """`curve[k]`: the regret after k + 1 steps; `inside`: 90 % intervals that held, per step."""

    engine: str
    network: str
    instance: int
    evaluations: int
    tied_by: str
    curve: list[float]
    inside: list[float]
    seconds: float


def run(
    engine: str, network: str, instance: int, evaluations: int, tied_by: str
) -> tuple[list[float], list[float], float]:
    """One engine on one landscape: curve, inside and seconds of its `Result`."""
    import torch

    from esnac.search.searcher import Searcher
    from esnac.search.settings import SearchSettings
    from esnac.search_spaces import SpaceSettings

    torch.set_num_threads(1)
    space = space_of(network)
    landscape = Landscape(space, instance)
    settings = SearchSettings(
        engine=engine,
        batch=BATCH,
        steps=evaluations // BATCH,  # type: ignore[arg-type]
    )
    searcher = Searcher(
        space.graph,
        teacher_accuracy=TEACHER,
        settings=settings,
        space=SpaceSettings(tied_by=tied_by),  # type: ignore[arg-type]
        seed=instance,
    )
    best = landscape.best()  # of channels tied by count in any case
    noise = np.random.default_rng((instance, 7))
    measured, true, curve, inside = [], [], [], []
    start = time.perf_counter()
    for _ in range(settings.steps):
        trials = searcher.ask(BATCH)
        candidates = searcher.space.candidates(trial.moves for trial in trials)
        accuracies = landscape.accuracy(candidates) * np.exp(noise.normal(0, NOISE, len(trials)))
        true += landscape.f(candidates).tolist()
        for trial, accuracy in zip(trials, accuracies, strict=True):
            measured.append(searcher.tell(trial, accuracy=min(float(accuracy), 1.0)))
        held = [
            trial.expected.low <= accuracy <= trial.expected.high
            for trial, accuracy in zip(trials, accuracies, strict=True)
            if trial.expected is not None
        ]
        inside.append(float(np.mean(held)) if held else float("nan"))
        top = np.argsort([-(f or 0.0) for f in measured], kind="stable")[:4]
        curve.append(best - max(true[row] for row in top))
    return curve, inside, time.perf_counter() - start


def ranks(network: str, instance: int) -> tuple[float, float]:
    """Rank correlation of predicted and true f after 40 observations: of all, of the best 30 %."""
    import torch
    from scipy.stats import spearmanr

    from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder
    from esnac.search.objectives import Objective
    from esnac.search.sampler import sample
    from esnac.search_spaces import SpaceSettings
    from esnac.surrogate.ensemble import Ensemble
    from esnac.surrogate.settings import EnsembleSettings

    torch.set_num_threads(1)
    space = space_of(network)
    landscape, objective = Landscape(space, instance), Objective(space, TEACHER)
    rng = np.random.default_rng((instance, 3))
    known, new = (sample(space, SpaceSettings(), n, rng) for n in (40, 250))
    measured = landscape.accuracy(known) * np.exp(rng.normal(0, NOISE, 40))
    encoder, model = SlimEncoder(space), Ensemble(SLIM_FEATURES, EnsembleSettings())
    z = torch.from_numpy(objective.log_ratio(measured))
    model.fit(torch.from_numpy(encoder.encode(known)), z, instance)
    mean, _ = model.predict(torch.from_numpy(encoder.encode(new))).marginal()
    predicted = objective.weight(new) * np.exp(mean.numpy())
    true = landscape.f(new)
    top = true >= np.quantile(true, 0.7)
    return spearmanr(predicted, true)[0], spearmanr(predicted[top], true[top])[0]


def volume(engine: str, network: str, instance: int, evaluations: int) -> float:
    """The true hypervolume of all that a pareto search evaluates."""
    import torch

    from esnac.search.objectives import hypervolume
    from esnac.search.searcher import Searcher
    from esnac.search.settings import ObjectiveSettings, SearchSettings

    torch.set_num_threads(1)
    space = space_of(network)
    landscape = Landscape(space, instance)
    searcher = Searcher(
        space.graph,
        teacher_accuracy=TEACHER,
        settings=SearchSettings(engine=engine, batch=BATCH),  # type: ignore[arg-type]
        objective=ObjectiveSettings(kind="pareto"),
        seed=instance,
    )
    noise = np.random.default_rng((instance, 7))
    for _ in range(evaluations // BATCH):
        for trial in searcher.ask(BATCH):
            true = landscape.accuracy(searcher.space.candidates([trial.moves]))[0]
            searcher.tell(trial, accuracy=min(float(true * np.exp(noise.normal(0, NOISE))), 1.0))
    candidates = searcher.space.candidates(trial.moves for trial in searcher.trials)
    return hypervolume(searcher.objective.gains(candidates, landscape.accuracy(candidates)))


WORK: dict[str, Callable[..., Any]] = {"run": run, "ranks": ranks, "volume": volume}
#: One of WORK, and its arguments.
Task = tuple[Any, ...]


def work(tasks: list[Task], workers: int, kept: Path | None) -> dict[Task, Any]:
    """What the tasks give; what `kept` holds is not computed again, and it gets what is new."""
    found: dict[Task, Any] = {}
    if kept is not None and kept.exists():
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        found = {tuple(line["task"]): line["value"] for line in lines}
    with ProcessPoolExecutor(workers) as pool:
        left = [task for task in tasks if task not in found]
        running = {
            pool.submit(WORK[name], *arguments): (name, *arguments) for name, *arguments in left
        }
        for future in as_completed(running):
            task, value = running[future], future.result()
            found[task] = value
            shown = f"{value[0][-1]:.4f} in {value[2]:.0f} s" if task[0] == "run" else value
            print(*task, shown, file=sys.stderr)
            if kept is not None:
                with kept.open("a") as file:
                    print(json.dumps({"task": task, "value": value}), file=file)
    return found


ENGINES = ("esnac", "paper", "features", "evolution", "tpe", "random")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    print_machine(1, "torch", "gpytorch", "botorch")
    jobs = [
        (engine, network, instance, args.evaluations, args.tied_by)
        for engine in sorted(args.engines, key=ENGINES.index)  # the slow ones first
        for network in args.networks
        for instance in args.instances
    ]
    paretos = [
        (engine, args.networks[0], instance, args.pareto_evaluations)
        for engine in ("esnac", "random")
        for instance in args.instances
        if args.pareto_evaluations
    ]
    pairs = [(network, instance) for network in args.networks for instance in args.instances]
    tasks: list[Task] = [
        *(("run", *job) for job in jobs),
        *(("volume", *pareto) for pareto in paretos),
        *(("ranks", *pair) for pair in pairs),
    ]
    values = work(tasks, args.workers, args.kept)
    results = [Result(*job, *values["run", *job]) for job in jobs]
    correlations = {
        network: [values["ranks", network, instance] for instance in args.instances]
        for network in args.networks
    }
    areas: dict[str, list[float]] = {}
    for pareto in paretos:
        areas.setdefault(pareto[0], []).append(values["volume", *pareto])
    print_table(results, args.networks, args.engines)
    if args.plot:
        plot(results, args.networks, args.engines, args.plot)
    figures = summary(results, correlations, areas, args)
    if max(args.instances) >= TUNED > min(args.instances):
        figures["unseen"] = unseen(results, correlations, areas, args)
    figures["evaluations"], figures["quick"] = args.evaluations, args.quick
    figures["pareto_evaluations"] = args.pareto_evaluations
    print(json.dumps(figures))
    return 0


def unseen(results: list[Result], correlations: Any, areas: Any, args: Any) -> dict[str, Any]:
    """The figures of the instances that did not serve for tuning."""
    keep = [place for place, instance in enumerate(args.instances) if instance >= TUNED]
    return summary(
        [result for result in results if result.instance >= TUNED],
        {network: [found[place] for place in keep] for network, found in correlations.items()},
        {engine: [found[place] for place in keep] for engine, found in areas.items()},
        args,
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one instance, 24 evaluations")
    parser.add_argument("--evaluations", type=int, default=160, help="per search (default 160)")
    parser.add_argument(
        "--instances",
        type=int,
        nargs="+",
        default=[*range(8), *range(16, 20)],
        help="(default 0 to 7 and 16 to 19)",
    )
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet34"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None)
    parser.add_argument(
        "--tied-by",
        choices=("count", "dependency"),
        default="count",
        help="the channels that shrink together (default: count)",
    )
    parser.add_argument(
        "--pareto-evaluations", type=int, default=80, help="per pareto search (default 80; 0: none)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="regret curves, as SVG or PNG")
    parser.add_argument(
        "--kept",
        type=Path,
        metavar="FILE",
        help="where what is computed is kept, so that a run that was stopped goes on",
    )
    args = parser.parse_args(argv)
    args.engines = args.engines or [engine for engine in ENGINES if engine != "paper"]
    if args.quick:
        args.instances, args.networks = [0], ["resnet18"]
        args.evaluations, args.pareto_evaluations = 24, 0
    return args


def regrets(results: list[Result], engine: str, network: str) -> dict[int, Result]:
    """The results of one engine on one network, by instance."""
    return {
        result.instance: result
        for result in results
        if (result.engine, result.network) == (engine, network)
    }


def mean_regret(results: list[Result], engine: str, network: str) -> float:
    return statistics.mean(r.curve[-1] for r in regrets(results, engine, network).values())


def print_table(results: list[Result], networks: list[str], engines: list[str]) -> None:
    """Mean regret x 1000 after some numbers of evaluations, as Markdown."""
    steps = len(results[0].curve)
    places = sorted({max(1, steps * part // 5) for part in range(1, 6)})
    counts = " | ".join(str(place * BATCH) for place in places)
    print(f"| network | engine | {counts} | spread | seconds |")
    print("| --- " * (len(places) + 4) + "|")
    for network in networks:
        for engine in engines:
            found = list(regrets(results, engine, network).values())
            means = [statistics.mean(r.curve[place - 1] for r in found) for place in places]
            cells = " | ".join(f"{1000 * mean:.1f}" for mean in means)
            last = [1000 * r.curve[-1] for r in found]
            spread = statistics.stdev(last) if len(last) > 1 else 0.0
            seconds = statistics.mean(r.seconds for r in found)
            print(f"| {network} | {engine} | {cells} | {spread:.1f} | {seconds:.0f} |")


def summary(
    results: list[Result],
    correlations: dict[str, list[tuple[float, float]]],
    areas: dict[str, list[float]],
    args: Any,
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if areas:
        ratios = [a / b for a, b in zip(areas["esnac"], areas["random"], strict=True)]
        mean = statistics.mean(areas["esnac"]) / statistics.mean(areas["random"])
        figures["hypervolume_ratio"] = round(mean, 3)
        figures["hypervolume_least"] = round(min(ratios), 3)
    networks, engines = args.networks, args.engines
    if "esnac" not in engines:
        return figures

    def versus(other: str) -> float | None:
        if other not in engines:
            return None
        ours, theirs = (
            sum(mean_regret(results, engine, network) for network in networks)
            for engine in ("esnac", other)
        )
        return round(ours / theirs, 3)

    figures["versus_evolution"], figures["versus_tpe"] = versus("evolution"), versus("tpe")
    figures["versus_paper"], figures["versus_features"] = versus("paper"), versus("features")
    if "random" in engines:
        regret_ratios, wins, total, needed = {}, 0, 0, []
        for network in networks:
            ours = regrets(results, "esnac", network)
            theirs = regrets(results, "random", network)
            ratio = mean_regret(results, "esnac", network) / mean_regret(results, "random", network)
            regret_ratios[network] = round(ratio, 3)
            for instance, result in ours.items():
                level = theirs[instance].curve[-1]
                wins += result.curve[-1] < level
                total += 1
                reached = [k + 1 for k, regret in enumerate(result.curve) if regret <= level]
                needed.append(BATCH * (reached[0] if reached else len(result.curve) + 1))
        figures["regret_ratio"] = regret_ratios
        figures["wins"] = f"{wins} of {total}"
        figures["evaluations_to_random"] = statistics.median(needed)
    pairs = [pair for network in networks for pair in correlations[network]]
    figures["rank40"] = round(statistics.mean(pair[0] for pair in pairs), 3)
    figures["rank40_top"] = round(statistics.mean(pair[1] for pair in pairs), 3)
    inside = [
        result.inside[6]
        for network in networks
        for result in regrets(results, "esnac", network).values()
        if len(result.inside) > 6
    ]
    figures["coverage90"] = round(statistics.mean(inside), 3) if inside else None
    return figures


def plot(results: list[Result], networks: list[str], engines: list[str], path: Path) -> None:
    """Mean regret over evaluations, one panel per network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(networks), figsize=(5 * len(networks), 4), squeeze=False, sharey=True
    )
    for axis, network in zip(axes[0], networks, strict=True):
        for engine in engines:
            curves = np.array([r.curve for r in regrets(results, engine, network).values()])
            axis.plot(BATCH * np.arange(1, curves.shape[1] + 1), curves.mean(axis=0), label=engine)
        axis.set(title=network, xlabel="evaluations", yscale="log")
    axes[0][0].set_ylabel("mean regret")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
