"""Speed of the search engine on one thread: candidates, one kernel fit, scoring.

Prints one JSON object on its last line; the machine goes to standard error. Times are seconds.

    fit_s              one fit of the published surrogate: 80 graphs of 108 layers x 272 features,
                       100 steps (with --quick: 40 graphs, 20 steps)
    score_s            expected improvement of 1,000 candidates with it (--quick: 200)
    candidates_per_s   ResNet-34 candidates sampled and encoded per second
    slim_fit_s, slim_score_s   the same with 20 features and one LSTM layer
    graphs, steps, candidates  what was measured
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from _machine import print_machine

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = 108  # of the ResNet-34 graph
FEATURES = 272  # of the published encoding
SLIM_FEATURES = 20


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

    import torch

    torch.set_num_threads(args.threads)
    print_machine(args.threads, "torch", "gpytorch", "botorch")
    graphs, steps, candidates = (40, 20, 200) if args.quick else (80, 100, 1000)
    figures: dict[str, float | int | bool | None] = {}
    figures["fit_s"], figures["score_s"] = fit_and_score(graphs, steps, candidates, FEATURES, 4)
    slim = fit_and_score(graphs, steps, candidates, SLIM_FEATURES, 1)
    figures["slim_fit_s"], figures["slim_score_s"] = slim
    figures["candidates_per_s"] = candidates_per_second(500 if args.quick else 5000)
    figures |= {"graphs": graphs, "steps": steps, "candidates": candidates, "quick": args.quick}
    print(json.dumps(figures))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    return parser.parse_args(argv)


def fit_and_score(
    graphs: int, steps: int, candidates: int, features: int, layers: int
) -> tuple[float, float]:
    """Seconds of one fit of exactly `steps` steps and of scoring `candidates` with it."""
    import torch

    from esnac.surrogate.fit import fit
    from esnac.surrogate.settings import SurrogateSettings

    x, new = encodings(graphs, features, seed=0), encodings(candidates, features, seed=1)
    y = torch.rand(graphs, generator=torch.Generator().manual_seed(2))
    settings = SurrogateSettings(layers=layers, steps=steps, tolerance=0.0)
    warm_up = SurrogateSettings(layers=1, hidden=8, steps=1)
    fit(x[:5], y[:5], None, warm_up, torch.Generator().manual_seed(0))

    start = time.perf_counter()
    surrogate = fit(x, y, None, settings, torch.Generator().manual_seed(3))
    middle = time.perf_counter()
    values = surrogate.expected_improvement(new, None, float(y.max()))
    end = time.perf_counter()
    if len(surrogate.objective) != steps or not torch.isfinite(values).all():
        raise RuntimeError("The fit did not take all its steps, or a score is not finite.")
    return round(middle - start, 3), round(end - middle, 3)


def encodings(n: int, features: int, seed: int) -> Tensor:
    """Made-up encodings (n x LAYERS x features) in the range of the real ones.

    The wide form has raw channel counts and sparse offsets of edges, the narrow one log2 channels.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(10, (n, LAYERS), generator=generator)
    x = torch.zeros(n, LAYERS, features)
    x.scatter_(2, kinds[..., None], 1)
    x[..., 10:14] = 1
    widths = 64 * 2 ** (torch.arange(LAYERS) * 4 // LAYERS)
    channels = (widths * torch.rand(n, LAYERS, generator=generator)).floor().clamp_min(1)
    if features < FEATURES:
        channels = channels.log2()
    x[..., 14:16] = channels[..., None]
    edges = torch.rand(n, LAYERS, features - 16, generator=generator) < 0.01
    x[..., 16:] = edges.float()
    return x


def candidates_per_second(n: int) -> float:
    """ResNet-34 candidates sampled and encoded per second, over `n` of them in pools of 1,000."""
    import numpy as np

    from esnac import networks
    from esnac.graphs.encode import Encoder
    from esnac.graphs.space import Space
    from esnac.graphs.trace import trace
    from esnac.search.sampler import sample
    from esnac.search_spaces import SpaceSettings

    space = Space(trace(networks.build("resnet34", 100), (3, 32, 32)))
    encoder, rng, pool = Encoder(space), np.random.default_rng(0), min(n, 1000)
    start = time.perf_counter()
    for _ in range(n // pool):
        encoder.encode(sample(space, SpaceSettings(), pool, rng))
    return n // pool * pool / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
