"""The measured time of one layer by itself, or of several calls side by side, on one device."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from esnac.deployment.shapes import ADD, LayerShape
from esnac.graphs import ops
from esnac.graphs.arch_graph import INPUT, Layer

#: Seconds that one shape may take on the CPU, warm-up included; one call may exceed it.
BUDGET = 0.02

WARM_UPS = 3
REPETITIONS = 100

#: On a GPU: calls between two events, and how often that is repeated.
ROW, ROWS = 20, 5


@torch.no_grad()
def measure(shape: LayerShape, device: torch.device, batch: int) -> float:
    """Median seconds of one call of the layer in eval mode on `batch` inputs.

    Float32 under torch's present settings; images channels-last, weights as a student loads them.
    On the CPU up to REPETITIONS calls after up to WARM_UPS, none of them begun after BUDGET. On a
    GPU calls run in rows without waiting for each other, as in a network. Draws no random numbers.
    Raises EsnacError for a layer that cannot be built.
    """
    call = _call(shape, device, batch)
    return _gpu_time(call, device) if device.type == "cuda" else _cpu_time(call)


def compare(
    calls: Sequence[Callable[[], object]],
    seconds: float = 0.5,
    turns: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each call on the CPU: the shortest of many.

    The calls take turns, so that other work on the machine meets them all: at least `turns` after
    the warm-up, and until they took `seconds` each.
    """
    for call in calls:
        for _ in range(WARM_UPS):
            call()
    shortest = [float("inf")] * len(calls)
    start, turn = clock(), 0
    while turn < turns or clock() - start < seconds * len(calls):
        for number, call in enumerate(calls):
            before = clock()
            call()
            shortest[number] = min(shortest[number], clock() - before)
        turn += 1
    return shortest


def device_name(device: torch.device) -> str:
    """The model of the GPU or the processor, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _call(shape: LayerShape, device: torch.device, batch: int) -> Callable[[], object]:
    inputs = [_ones((batch, *size), device) for size in shape.reads]
    if shape.kind == ADD:
        return lambda: inputs[0] + inputs[1]
    layer = Layer(
        name=shape.kind,
        kind=shape.kind,
        inputs=(INPUT,) * len(inputs),
        in_shape=shape.reads[0],
        out_shape=shape.makes,
        attributes=dict(shape.attributes),
    )
    # Built without weights and then filled: torch's initialisation would move its global generator,
    # and a search would draw other numbers with a cache than without. 0.01 keeps outputs away from
    # infinity and from denormal numbers, which some processors are slow with.
    module = ops.build(layer, "meta").to_empty(device=device).eval()
    for tensor in module.state_dict().values():
        tensor.fill_(0.01)
    return lambda: module(*inputs)


def _ones(shape: tuple[int, ...], device: torch.device) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.ones(shape, device=device).contiguous(memory_format=layout)


def _cpu_time(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    for _ in range(WARM_UPS):
        call()
        if clock() - started > BUDGET / 4:
            break
    seconds: list[float] = []
    now = clock()
    while not seconds or (len(seconds) < REPETITIONS and now - started < BUDGET):
        before = clock()
        call()
        now = clock()
        seconds.append(now - before)
    return statistics.median(seconds)


def _gpu_time(call: Callable[[], object], device: torch.device) -> float:
    seconds = []
    with torch.cuda.device(device):
        for _ in range(WARM_UPS):
            call()
        torch.cuda.synchronize()
        for _ in range(ROWS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(ROW):
                call()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / ROW)
    return statistics.median(seconds)
