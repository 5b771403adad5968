"""What batches and the C library's memory do to speed on a CPU.

A network at 32x32 with 10 classes, random images, channels-last, float32. A process that maps large
tensors one by one, as glibc does unless told, and one that is set up as `esnac` sets up its own
(`esnac.runtime.set_up_process`) take turns; figures are the best of the rounds.

Prints one JSON object on its last line; the machine goes to standard error.

    inference_ratio     images/s in batches of `inference_batch` and with memory that is used again,
                        over those in batches of 250 that are mapped anew
    batch_ratio         the same for the batches alone
    training_ratio      images/s of forward and backward passes in batches of 128, memory used again
                        over mapped anew
    images_per_s        each of these figures
    network, rounds, threads            what was measured
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from _machine import print_machine

BATCH, TRAINING = 250, 128


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child is not None:
        return child(args)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print_machine(args.threads, "torch")
    best: dict[str, dict[str, float]] = {"mapped": {}, "reused": {}}
    for _ in range(args.rounds):
        for memory, found in best.items():
            command = [sys.executable, __file__, "--child", memory, "--network", args.network]
            command += ["--threads", str(args.threads)]
            text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            for name, value in json.loads(text).items():
                found[name] = max(value, found.get(name, 0.0))
    mapped, reused = best.values()
    figures = {
        "inference_ratio": reused["few"] / mapped["many"],
        "batch_ratio": reused["few"] / reused["many"],
        "training_ratio": reused["training"] / mapped["training"],
        "images_per_s": best,
        "network": args.network,
        "rounds": args.rounds,
        "threads": args.threads,
    }
    print(json.dumps(figures))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20", help="as `esnac` names it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=("mapped", "reused"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def child(args: argparse.Namespace) -> int:
    """Prints images/s of inference in few and many images at a time, and of training."""
    import torch

    from esnac import networks
    from esnac.runtime import inference_batch, set_up_process

    torch.set_num_threads(args.threads)
    if args.child == "reused":
        set_up_process(args.threads)
    torch.manual_seed(0)
    network = networks.build(args.network, 10).to(memory_format=torch.channels_last)

    def rate(batch: int, run: Callable[[torch.Tensor], object]) -> float:
        x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        run(x)
        seconds = []
        for _ in range(max(3, 1000 // batch)):
            start = time.perf_counter()
            run(x)
            seconds.append(time.perf_counter() - start)
        return batch / min(seconds)

    found = {"training": rate(TRAINING, lambda x: network(x).square().mean().backward())}
    network.eval()
    with torch.inference_mode():
        found["few"] = rate(inference_batch(torch.device("cpu"), (3, 32, 32)), network)
        found["many"] = rate(BATCH, network)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
