"""Speed of the search engine on one thread: candidates, fits, scores, whole steps.

Prints one JSON object on its last line; the machine goes to standard error. Times are seconds.

    fit_s, score_s          one member of the default engine's ensemble: 100 steps, each on all 80
                            graphs of 108 layers, and the posterior of 1,000 candidates
    plain_fit_s, plain_score_s   the published kernel (272 features, 4 x 64 LSTM) one sequence after
                            the other, written plainly: time of 2 steps, scaled to 100, and of 100
                            candidates, scaled to 1,000
    fit_ratio, score_ratio  plain over ours, measured in turns in one run
    paper_fit_s, paper_score_s   the engine "paper": the published kernel, batched
    ask8_160_s, ask8_2000_s one step of the default engine (eight ResNet-34 students) that finds 160
                            or 2,000 observations, the step before known to it
    candidates_per_s        ResNet-34 candidates sampled and encoded (272 features) per second
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import cache
from typing import TYPE_CHECKING

from _machine import print_machine

if TYPE_CHECKING:
    from torch import Tensor

    from esnac.graphs.space import Candidates, Space

FEATURES = 272  # of the published encoding


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

    import torch

    torch.set_num_threads(args.threads)
    print_machine(args.threads, "torch", "gpytorch", "botorch")
    graphs, steps, candidates = (40, 20, 200) if args.quick else (80, 100, 1000)
    figures: dict[str, float | int | bool | None] = {}
    ours, plain = [], []
    for turn in range(1 if args.quick else 3):  # in turns: the machine may be busier at times
        ours.append(deep_kernel(graphs, steps, candidates, turn))
        plain.append(plain_kernel(graphs, steps, candidates, turn))
    for column, name in enumerate(("fit", "score")):
        mine, theirs = (sorted(row[column] for row in rows) for rows in (ours, plain))
        figures[f"{name}_s"] = round(mine[len(mine) // 2], 3)
        figures[f"plain_{name}_s"] = round(theirs[len(theirs) // 2], 2)
        figures[f"{name}_ratio"] = round(theirs[len(theirs) // 2] / mine[len(mine) // 2], 1)
    if not args.quick:
        figures["paper_fit_s"], figures["paper_score_s"] = fit_and_score(graphs, steps, candidates)
    figures["ask8_160_s"] = ask_seconds(160)
    if not args.quick:
        figures["ask8_2000_s"] = ask_seconds(2000)
    figures["candidates_per_s"] = candidates_per_second(500 if args.quick else 5000)
    figures |= {"graphs": graphs, "steps": steps, "candidates": candidates, "quick": args.quick}
    print(json.dumps(figures))
    return 0


def deep_kernel(graphs: int, steps: int, candidates: int, seed: int) -> tuple[float, float]:
    """Seconds of one fit of one member, and of the posterior of `candidates`."""
    import torch

    from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder
    from esnac.surrogate.ensemble import Ensemble
    from esnac.surrogate.settings import EnsembleSettings

    space = resnet34_space()
    encoder = SlimEncoder(space)
    settings = EnsembleSettings(
        members=1, first_steps=steps, part=1.0, least_part=graphs, batch=graphs
    )
    model = Ensemble(SLIM_FEATURES, settings)
    x, new = (
        torch.from_numpy(encoder.encode(draw(space, n, seed + k)))
        for k, n in enumerate((graphs, candidates))
    )
    y = torch.rand(graphs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = time.perf_counter()
    model.fit(x, y, seed, afresh=True)
    middle = time.perf_counter()
    model.predict(new)
    return middle - start, time.perf_counter() - middle


def plain_kernel(graphs: int, steps: int, candidates: int, seed: int) -> tuple[float, float]:
    """The published kernel as one would write it down first: graph by graph, scaled up in time."""
    import torch
    from torch import nn

    from esnac.graphs.encode import Encoder

    space = resnet34_space()
    x = torch.from_numpy(Encoder(space).encode(draw(space, graphs, seed)))
    y = torch.rand(graphs, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    lstm = nn.LSTM(FEATURES, 64, 4, bidirectional=True)
    optimizer = torch.optim.Adam(lstm.parameters(), lr=1e-3, weight_decay=5e-4)

    def embedding(graph: Tensor) -> Tensor:
        mean = lstm(graph[:, None])[0][:, 0].mean(0)
        return mean / mean.norm()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 0.02)

    some = 2
    start = time.perf_counter()
    for _ in range(some):
        optimizer.zero_grad()
        h = torch.stack([embedding(graph) for graph in x])
        inverse = torch.linalg.inv(kernel(h, h) + 0.05 * torch.eye(graphs))
        variance = 1 / inverse.diagonal()
        mean = y - (inverse @ y) * variance
        loss = (variance.log() / 2 + (y - mean) ** 2 / (2 * variance)).mean()
        loss.backward()
        optimizer.step()
    fit = (time.perf_counter() - start) * steps / some
    new = torch.from_numpy(Encoder(space).encode(draw(space, candidates // 10, seed + 1)))
    start = time.perf_counter()
    with torch.no_grad():
        for graph in new:
            k = kernel(embedding(graph)[None], h)[0]
            mean, variance = k @ inverse @ y, 1 - k @ inverse @ k
    return fit, (time.perf_counter() - start) * 10


def ask_seconds(observations: int) -> float:
    """Seconds of a step that finds `observations` results, members warm from the step before."""
    import numpy as np

    from esnac.search.searcher import Searcher
    from esnac.search.settings import SearchSettings
    from esnac.search.trial import Outcome, Trial

    space = resnet34_space()
    settings = SearchSettings(engine="esnac", batch=8, steps=1000)
    searcher = Searcher(space.graph, settings=settings)
    rng = np.random.default_rng(0)
    drawn = draw(space, observations, 5)
    for number in range(observations):
        step = min(number // 8, (observations - 9) // 8)
        trial = Trial(number, step, space.moves(drawn, number), 1, 1, 0.5)
        searcher.restore(trial)
        searcher.tell(trial, Outcome(accuracy=float(rng.uniform(0.3, 0.9))))
    searcher.ask(8)
    start = time.perf_counter()
    searcher.ask(8)
    return round(time.perf_counter() - start, 2)


def draw(space: Space, n: int, seed: int) -> Candidates:
    import numpy as np

    from esnac.search.sampler import sample
    from esnac.search_spaces import SpaceSettings

    return sample(space, SpaceSettings(), n, np.random.default_rng(seed))


@cache
def resnet34_space() -> Space:
    from esnac import networks
    from esnac.graphs.space import Space
    from esnac.graphs.trace import trace

    return Space(trace(networks.build("resnet34", 100), (3, 32, 32)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    return parser.parse_args(argv)


def fit_and_score(graphs: int, steps: int, candidates: int) -> tuple[float, float]:
    """Seconds of one fit of exactly `steps` steps by the engine "paper", and of scoring with it."""
    import torch

    from esnac.graphs.encode import Encoder
    from esnac.surrogate.fit import fit
    from esnac.surrogate.settings import SurrogateSettings

    space = resnet34_space()
    encoder = Encoder(space)
    x, new = (
        torch.from_numpy(encoder.encode(draw(space, n, k)))
        for k, n in enumerate((graphs, candidates))
    )
    y = torch.rand(graphs, generator=torch.Generator().manual_seed(2))
    settings = SurrogateSettings(steps=steps, tolerance=0.0)
    start = time.perf_counter()
    surrogate = fit(x, y, None, settings, torch.Generator().manual_seed(3))
    middle = time.perf_counter()
    values = surrogate.expected_improvement(new, None, float(y.max()))
    end = time.perf_counter()
    if len(surrogate.objective) != steps or not torch.isfinite(values).all():
        raise RuntimeError("The fit did not take all its steps, or a score is not finite.")
    return round(middle - start, 3), round(end - middle, 3)


def candidates_per_second(n: int) -> float:
    """ResNet-34 candidates sampled and encoded per second, over `n` of them in pools of 1,000."""
    import numpy as np

    from esnac.graphs.encode import Encoder
    from esnac.search.sampler import sample
    from esnac.search_spaces import SpaceSettings

    space = resnet34_space()
    encoder, rng, pool = Encoder(space), np.random.default_rng(0), min(n, 1000)
    start = time.perf_counter()
    for _ in range(n // pool):
        encoder.encode(sample(space, SpaceSettings(), pool, rng))
    return n // pool * pool / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
