"""Speed of training with quantisers: one step of ResNet-20 against the same step in float.

ResNet-20 at 32x32, 10 classes, all layers but the first and the last with 4-bit weights and 4-bit
inputs (LSQ: learned steps). Random images, cross entropy, SGD with momentum, channels-last, float32
on one thread. The two steps take turns, and figures are medians over the rounds.

Prints one JSON object on its last line; the machine goes to standard error.

    step_ratio          seconds of the quantised step / those of the float step
    quantised_seconds, float_seconds    of one step
    post_mortem_seconds of quantising all weights of the network once (uniform, buckets of 256)
    method, bits, batch, rounds, threads        what was measured
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from _machine import print_machine

if TYPE_CHECKING:
    from torch import nn

SIZE = (3, 32, 32)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print_machine(args.threads, "torch")
    rounds = args.rounds or (3 if args.quick else 12)
    steps = [step(network(None), args.batch), step(network(args), args.batch)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which, run in enumerate(steps):
            start = time.perf_counter()
            run()
            if number:  # the first round allocates
                times[which].append(time.perf_counter() - start)
    plain, quantised = (statistics.median(row) for row in times)
    figures = {"step_ratio": round(quantised / plain, 3)}
    figures |= {"quantised_seconds": round(quantised, 4), "float_seconds": round(plain, 4)}
    figures |= {"post_mortem_seconds": round(post_mortem(network(None)), 4)}
    about = {"method": args.method, "bits": [args.weights, args.activations], "batch": args.batch}
    print(json.dumps(figures | about | {"rounds": rounds, "threads": args.threads}))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--threads", type=int, default=1, help="(default 1)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default 64)")
    parser.add_argument("--rounds", type=int, help="turns of each side (default 12)")
    parser.add_argument("--method", default="lsq", choices=("lsq", "dorefa", "minmax"))
    parser.add_argument("--weights", type=int, default=4, help="bits (default 4)")
    parser.add_argument("--activations", type=int, default=4, help="bits (default 4)")
    return parser.parse_args(argv)


def network(args: argparse.Namespace | None) -> nn.Module:
    """ResNet-20 as the search builds it: a network that runs a graph; None: in float."""
    import torch

    from esnac.graphs.network import StudentNetwork
    from esnac.graphs.trace import trace
    from esnac.networks import build
    from esnac.quantization.attach import attach
    from esnac.quantization.description import activation_settings, weight_settings
    from esnac.quantization.policy import Policy, make_plan

    model = StudentNetwork(trace(build("resnet20", 10), SIZE))
    if args is not None:
        ways = weight_settings(args.method), activation_settings(args.method)
        attach(model, make_plan(model, Policy(args.weights, args.activations), *ways))
    return model.to(memory_format=torch.channels_last).train()


def step(model: nn.Module, batch: int) -> Callable[[], None]:
    """One training step of the network, each time on the same images."""
    import torch
    from torch.nn.functional import cross_entropy

    images = torch.randn(batch, *SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def post_mortem(model: nn.Module) -> float:
    from esnac.quantization.order import quantizable
    from esnac.quantization.uniform import quantize_uniform

    weights = [model.get_parameter(name) for names in quantizable(model).values() for name in names]
    start = time.perf_counter()
    for weight in weights:
        quantize_uniform(weight, levels=16, rows=256)
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
