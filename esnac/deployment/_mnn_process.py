"""What `mnn` does in a process of its own: python -m esnac.deployment._mnn_process JOB.json

MNN prints to the C library's standard output when it is imported and at work, and a network that it
cannot handle may end the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Seconds and least number of passes that the time of one batch is the shortest of.
_SECONDS, _PASSES = 0.5, 10

#: Images in a batch when a whole set is run.
_BATCH = 50


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    task = job.pop("task")
    tasks: dict[str, Callable[..., None]] = {"tool": tool, "run": run}
    tasks[task](**job)


def tool(name: str, arguments: list[str]) -> None:
    """A native tool of MNN, past its console script, which reports usage over the network."""
    import _tools

    getattr(_tools, name)([name, *arguments])


def run(model: str, inputs: str, outputs: str, threads: int, batches: list[int]) -> None:
    """Logits of the images in a .npy file, and seconds of a pass per batch, to a .npz file."""
    from MNN import nn

    images = np.load(inputs, allow_pickle=False)
    config = {"backend": "CPU", "numThread": threads, "precision": "high"}
    runtime = nn.create_runtime_manager((config,))
    network = nn.load_module_from_file(
        model, ["input"], ["logits"], runtime_manager=runtime, shape_mutable=True
    )
    parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    logits = np.concatenate([_forward(network, part) for part in parts])
    seconds = [_seconds(network, np.resize(images, (b, *images.shape[1:]))) for b in batches]
    with open(outputs, "wb") as file:
        np.savez(file, logits=logits, seconds=np.array(seconds))


def _forward(network: Any, images: np.ndarray) -> np.ndarray:
    from MNN import expr

    images = np.ascontiguousarray(images)
    given = expr.const(images, list(images.shape), expr.NCHW, expr.float)
    # The array lies in memory of the variable, which must live until it is copied.
    logits = network.forward([given])[0]
    return np.array(logits.read(), dtype=np.float32)


def _seconds(network: Any, images: np.ndarray) -> float:
    shortest, passes, start = float("inf"), 0, time.perf_counter()
    while passes < _PASSES or time.perf_counter() - start < _SECONDS:
        before = time.perf_counter()
        _forward(network, images)
        shortest = min(shortest, time.perf_counter() - before)
        passes += 1
    return shortest


if __name__ == "__main__":
    main(sys.argv[1])
