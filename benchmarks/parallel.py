"""Parallel search: throughput, overhead, memory and early stopping on this machine's local Ray.

Prints one JSON object on its last line; the machine goes to standard error. One thread per worker.

    speedup_2            evaluations per minute of two workers over those of one (digits, students
                         of ResNet-20 that the sampler draws; from the first result to the last)
    overhead_s           median seconds from one result to the next, one worker, beyond the
                         evaluation's own
    datasets_in_store    how many copies of the data set four workers on one node keep in Ray's
                         object store: bytes in use over bytes of the set
    busy_fraction        share of 64 simulated workers' time that is busy until the last of 512
                         trials is handed out: evaluations take 20 to 40 simulated seconds, the
                         driver's own computing its measured time (busy_to_end: until all ended)
    asha_epochs, asha_f  with early stopping on digits: epochs spent over those planned, and mean
                         best f minus that of whole evaluations, three seeds (--asha)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import print_machine


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    print_machine(1, "torch", "ray")
    figures: dict[str, Any] = {}
    trials = 8 if args.quick else 24
    one, two = (throughput(workers, trials, args.epochs) for workers in (1, 2))
    figures["speedup_2"] = round(two["rate"] / one["rate"], 2)
    figures["per_minute_1"], figures["per_minute_2"] = round(one["rate"]), round(two["rate"])
    figures["overhead_s"] = round(one["overhead"], 3)
    figures["datasets_in_store"] = round(datasets_in_store(4), 2)
    figures |= simulated(8 if args.quick else 64, 64 if args.quick else 512)
    if args.asha:
        figures |= asha()
    print(json.dumps(figures | {"trials": trials, "quick": args.quick}))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer trials, about a minute")
    parser.add_argument("--epochs", type=int, default=8, help="per evaluation (default 8)")
    parser.add_argument("--asha", action="store_true", help="also early stopping (some minutes)")
    return parser.parse_args(argv)


def throughput(workers: int, trials: int, epochs: int) -> dict[str, float]:
    """Evaluations per minute, and the median overhead of one in seconds."""
    from esnac.cluster import ClusterSettings, connected
    from esnac.search.bundle import Bundle
    from esnac.search.feed import StreamingFeed
    from esnac.search.searcher import Searcher
    from esnac.search.settings import SearchSettings
    from esnac.search.tune import tune_search
    from esnac.search_spaces import SpaceSettings

    ends: list[tuple[float, float]] = []

    def record(rows: Any) -> None:
        ends.extend((time.perf_counter(), r["seconds"]) for r in rows if r["state"] != "PROPOSED")

    evaluator = digits_evaluator(epochs)
    settings = SearchSettings(engine="random", batch=4, steps=trials // 4)
    searcher = Searcher(evaluator.space.graph, settings=settings)
    targets = {epoch: evaluator.targets.epoch(epoch) for epoch in range(epochs)}
    bundle = Bundle.of(evaluator, SpaceSettings(), targets)
    with (
        tempfile.TemporaryDirectory() as folder,
        connected(ClusterSettings("ray", workers=workers)) as cluster,
    ):
        feed = StreamingFeed(searcher, record, workers=workers)
        tune_search(searcher, feed, bundle, cluster, lambda n: Path(folder) / str(n))
        feed.close()
    # Workers start one after the other: what counts begins when each has had its first trial.
    begin = workers - 1
    rate = 60 * (len(ends) - 1 - begin) / (ends[-1][0] - ends[begin][0])
    gaps = [b[0] - a[0] - b[1] for a, b in zip(ends, ends[1:], strict=False)]
    return {"rate": rate, "overhead": statistics.median(gaps)}


def digits_evaluator(epochs: int) -> Any:
    """Evaluations on digits against an untrained ResNet-20: what they find does not matter."""
    import torch

    from esnac import data, networks
    from esnac.data import DataSettings
    from esnac.distillation.targets import TeacherTargets
    from esnac.graphs.network import teacher_weights
    from esnac.graphs.space import Space
    from esnac.graphs.trace import trace
    from esnac.runtime import derive_seed
    from esnac.search.evaluation import Evaluator
    from esnac.training import TrainingSettings

    torch.manual_seed(0)
    digits = data.load("digits", Path(), DataSettings(padding=0, flip=False))
    module = networks.build("resnet20", 10, digits.input_shape[0]).eval()
    graph = trace(module, digits.input_shape)
    cpu = torch.device("cpu")
    targets = TeacherTargets(module, digits, derive_seed(0, "augmentation"), cpu)
    training = TrainingSettings(
        epochs=epochs, optimizer="adam", distillation="logit_mse", label_weight=0.0
    )
    weights = teacher_weights(graph, module.state_dict())
    return Evaluator(
        Space(graph), weights, digits, targets, training, "leading", 0, cpu, lambda n: Path()
    )


def datasets_in_store(workers: int) -> float:
    """Bytes in Ray's object store over those of a data set that `workers` actors have loaded."""
    import ray
    import torch

    from esnac.cluster import ClusterSettings, connected
    from esnac.data.arrays import pack, unpack
    from esnac.data.sets import DataSet, ImageSet

    images = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8)
    part = ImageSet(images, torch.zeros(len(images), dtype=torch.int64))
    nothing = ImageSet(images[:0], part.labels[:0])
    names = tuple("ab")
    data = DataSet("zeros", part, nothing, nothing, 2, names, (0.5,) * 3, (1.0,) * 3, 0, False)

    class Holder:
        def __init__(self, packed: Any) -> None:
            self.data = unpack(packed)

        def images(self) -> int:
            return len(self.data.train)

    settings = ClusterSettings("ray", workers=workers, cpus_per_worker=0.5)
    with connected(settings) as cluster:
        shared = ray.put(pack(data))
        actor: Any = ray.remote(num_cpus=cluster.cpus)(Holder)
        holders = [actor.remote(shared) for _ in range(workers)]
        counts = ray.get([holder.images.remote() for holder in holders])
        if counts != [len(images)] * workers:
            raise RuntimeError(f"The workers hold {counts} images.")
        time.sleep(5)  # nodes report now and then
        total, free = ray.cluster_resources(), ray.available_resources()
        used = total["object_store_memory"] - free["object_store_memory"]
    return used / (images.numel() + part.labels.numel() * 8)


def simulated(workers: int, trials: int) -> dict[str, float]:
    """The default engine's asynchronous search on a landscape, on a simulated clock."""
    import numpy as np
    from search_quality import NOISE, TEACHER, Landscape, space_of

    from esnac.executors import SimulatedExecutor
    from esnac.search.feed import StreamingFeed
    from esnac.search.loop import search_loop
    from esnac.search.searcher import Searcher
    from esnac.search.settings import SearchSettings
    from esnac.search.trial import Outcome, Trial

    space = space_of("resnet18")
    landscape, rng = Landscape(space, 0), np.random.default_rng(0)
    seconds = rng.uniform(20, 40, trials)
    noise = np.exp(rng.normal(0, NOISE, trials))
    settings = SearchSettings(batch=8, steps=trials // 8)
    searcher = Searcher(space.graph, teacher_accuracy=TEACHER, settings=settings)

    def work(trial: Trial) -> Outcome:
        true = landscape.accuracy(searcher.space.candidates([trial.moves]))[0]
        return Outcome(accuracy=min(float(true * noise[trial.number]), 1.0))

    executor = SimulatedExecutor(work, lambda trial: seconds[trial.number], workers)
    feed = StreamingFeed(
        searcher, lambda rows: None, workers=workers, background=executor.background
    )
    search_loop(feed, executor)
    if len(searcher.outcomes) != trials:
        raise RuntimeError(f"{len(searcher.outcomes)} of {trials} trials ended.")
    to_end = seconds.sum() / (workers * executor.clock)
    busy = executor.busy_fraction()
    return {"busy_fraction": round(busy, 4), "busy_to_end": round(float(to_end), 4)}


def asha() -> dict[str, float]:
    """Early stopping against whole evaluations on digits: what it spends, what it loses."""
    from esnac import api
    from esnac.cluster import ClusterSettings
    from esnac.preparation import Choices, Folders
    from esnac.report.summary import summarise
    from esnac.runs import Run

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders = Folders(
            runs=root / "runs",
            new_teachers=root / "teachers",
            teachers=[root / "teachers"],
            search_spaces=None,
            data=root,
        )
        found: dict[str, list[Any]] = {"none": [], "asha": []}
        for seed in (1, 2, 3):
            for stopping, summaries in found.items():
                changes = ["search.steps=8", "finish.finalists=1", "finish.training.epochs=1"]
                changes += [f"search.early_stopping={stopping}"]
                path = api.start(
                    Choices("resnet20", "digits", seed=seed, assignments=changes),
                    folders,
                    suffix=f"{stopping}-{seed}",
                    cluster=ClusterSettings("ray", workers=2),
                )
                with Run.open(path) as run:
                    summaries.append(summarise(run.events(), path.name))
    spent = sum(summary.epochs.spent for summary in found["asha"])
    planned = sum(summary.epochs.planned for summary in found["asha"])
    best = {key: [summary.best_f for summary in found[key]] for key in found}
    print(f"best f of three seeds: {best}", file=sys.stderr)
    gain = statistics.mean(best["asha"]) - statistics.mean(best["none"])
    return {"asha_epochs": round(spent / planned, 3), "asha_f": round(gain, 4)}


if __name__ == "__main__":
    sys.exit(main())
