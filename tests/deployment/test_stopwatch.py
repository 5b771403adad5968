"""That every kind of layer can be measured; how long it takes is the machine's business."""

from __future__ import annotations

import math

import pytest
import torch

from esnac.deployment import stopwatch
from esnac.deployment.shapes import ADD, LayerShape
from esnac.errors import EsnacError
from esnac.graphs import ops

IMAGE = (16, 4, 4)
CONV = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "bias": True}
POOL = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": False}
NORM = {"eps": 1e-5, "affine": True}
ATTRIBUTES = {
    "conv": CONV | {"groups": 2},
    "batch_norm": NORM | {"momentum": 0.1, "track": True},
    "group_norm": NORM | {"groups": 4},
    "linear": {"bias": True},
    "slice": {"start": 0, "stop": 8},
    "channel_shuffle": {"groups": 2},
    "stochastic_depth": {"p": 0.5, "mode": "row"},
    "leaky_relu": {"slope": 0.01},
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
    "max_pool": POOL | {"dilation": (1, 1)},
    "avg_pool": POOL | {"count_include_pad": True},
    "adaptive_avg_pool": {"size": (1, 1)},
    "adaptive_max_pool": {"size": (1, 1)},
    "dropout": {"p": 0.5},
    "dropout2d": {"p": 0.5},
}


def shape(kind: str) -> LayerShape:
    reads = {
        "concat": (IMAGE, IMAGE),
        "multiply": (IMAGE, IMAGE[:1]),
        "linear": (IMAGE[:1],),
        ADD: (IMAGE, IMAGE),
    }.get(kind, (IMAGE,))
    makes = IMAGE[:1] if kind == "linear" else IMAGE
    return LayerShape(kind, reads, makes, tuple(ATTRIBUTES.get(kind, {}).items()))


@pytest.mark.parametrize("kind", sorted([*ops.OPERATIONS, ADD]))
def test_every_kind_takes_time_and_no_random_numbers(kind, device, monkeypatch):
    monkeypatch.setattr(stopwatch, "REPETITIONS", 3)
    before = torch.random.get_rng_state()
    seconds = stopwatch.measure(shape(kind), device, batch=2)
    assert math.isfinite(seconds)
    assert seconds > 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_call_begins_after_the_budget():
    """A call of 15 ms by a clock of its own: one warm-up, then one call within 20 ms."""
    now = 0.0
    calls = 0

    def call() -> None:
        nonlocal now, calls
        now += 0.015
        calls += 1

    assert stopwatch._cpu_time(call, lambda: now) == pytest.approx(0.015)
    assert calls == 2


def test_short_calls_are_repeated():
    """Of 1 microsecond each, but that every tenth waits for something else: the median does not."""
    now = 0.0
    calls = 0

    def call() -> None:
        nonlocal now, calls
        calls += 1
        now += 1e-6 if calls % 10 else 1e-4

    assert stopwatch._cpu_time(call, lambda: now) == pytest.approx(1e-6)
    assert calls == stopwatch.WARM_UPS + stopwatch.REPETITIONS


def test_calls_take_turns():
    """By a clock that the calls move: the first takes 3 s, later 2 s; the other always 1 s."""
    now = 0.0
    order = []

    def slow() -> None:
        nonlocal now
        order.append("slow")
        now += 2.0 if len(order) > 9 else 3.0

    def fast() -> None:
        nonlocal now
        order.append("fast")
        now += 1.0

    assert stopwatch.compare([slow, fast], 6.0, 2, lambda: now) == [2.0, 1.0]
    assert order == ["slow"] * 3 + ["fast"] * 3 + ["slow", "fast"] * 4


def test_a_shape_that_fits_no_layer_is_an_error(device):
    with pytest.raises(EsnacError, match="cannot be built"):
        stopwatch.measure(LayerShape("linear", ((3,),), (4,)), device, batch=1)


def test_the_device_has_a_name(device):
    assert stopwatch.device_name(device).strip()
