"""What exported files are worth: size, accuracy and time, each in the runtime it was made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from esnac.data import DataSet
from esnac.data.batches import evaluation_batches
from esnac.data.sets import Images
from esnac.deployment import mnn, onnx_session, stopwatch
from esnac.errors import DataError, EsnacError
from esnac.runtime import evaluating


@dataclass(frozen=True)
class Row:
    """A file in its runtime; `runtime` "torch" is the network that the files were made of.

    `accuracy` on the test split; `agreement`: fraction of the test images with torch's prediction;
    `difference`: the largest of a logit to torch's; `seconds` of one pass by size of the batch.
    """

    runtime: str
    path: str | None
    bytes: int | None
    accuracy: float
    agreement: float
    difference: float
    seconds: dict[int, float]

    def to_plain(self) -> dict[str, Any]:
        """JSON turns the batches into text."""
        return {**asdict(self), "seconds": {str(b): s for b, s in self.seconds.items()}}


def inputs_of(images: Images, data: DataSet) -> np.ndarray:
    """The normalised inputs (N x C x H x W, float32) of `images` in order."""
    if not len(images):
        raise DataError(f"{data.name}: no images to run. Ask for a larger split.")
    return np.concatenate([x.numpy() for x, _ in evaluation_batches(images, data, 250)])


def logits(path: Path, inputs: np.ndarray, threads: int = 1) -> np.ndarray:
    """N x classes logits of an ONNX or MNN file by its runtime. Raises EsnacError."""
    if path.suffix == ".mnn":
        return mnn.run(path, inputs, threads)[0]
    return onnx_session.run(onnx_session.open_session(path, threads), inputs)


def fraction_right(logits: np.ndarray, images: Images) -> float:
    right: float = (logits.argmax(axis=1) == images.labels.cpu().numpy()).mean().item()
    return right


def table(
    network: nn.Module,
    paths: Mapping[str, Path],
    data: DataSet,
    *,
    threads: int = 1,
    batches: Sequence[int] = (1, 64),
) -> list[Row]:
    """A row for `network` in torch, and one for each file by its name in `paths`.

    Accuracy is of the test split. Times are the shortest of many passes with `threads` threads, of
    torch and onnxruntime in turns, of MNN in a process of its own. `network` and `data` lie on the
    CPU.
    """
    inputs = inputs_of(data.test, data)
    batched = {batch: np.resize(inputs, (batch, *inputs.shape[1:])) for batch in batches}
    with evaluating(network), _threads(threads), torch.no_grad():
        expected = _torch(network, inputs)
        found = {"torch": expected}
        calls: dict[str, Callable[[np.ndarray], object]] = {"torch": partial(_torch, network)}
        seconds: dict[str, dict[int, float]] = {}
        for name, path in paths.items():
            if path.suffix == ".mnn":
                found[name], seconds[name] = mnn.run(path, inputs, threads, batches)
            else:
                session = onnx_session.open_session(path, threads)
                found[name] = onnx_session.run(session, inputs)
                calls[name] = partial(onnx_session.run, session)
        for batch, images in batched.items():
            times = stopwatch.compare([partial(call, images) for call in calls.values()])
            for name, took in zip(calls, times, strict=True):
                seconds.setdefault(name, {})[batch] = took
    predicted = expected.argmax(axis=1)
    return [
        Row(
            runtime=name,
            path=str(paths[name]) if name in paths else None,
            bytes=paths[name].stat().st_size if name in paths else None,
            accuracy=fraction_right(values, data.test),
            agreement=(values.argmax(axis=1) == predicted).mean().item(),
            difference=_finite(name, np.abs(values - expected).max().item()),
            seconds=seconds[name],
        )
        for name, values in found.items()
    ]


def _torch(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    parts = torch.from_numpy(inputs).split(250)
    return torch.cat([network(part) for part in parts]).numpy()


def _finite(name: str, difference: float) -> float:
    if not np.isfinite(difference):
        raise EsnacError(f"{name} gives logits that are not finite. Export to another format.")
    return difference


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
