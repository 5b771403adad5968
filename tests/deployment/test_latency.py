"""Sums of layer times with made-up stopwatches, against students' graphs and by hand."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from esnac import networks
from esnac.deployment.latency import LayerTimes
from esnac.deployment.shapes import LayerShape
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Candidates, Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings

CPU = torch.device("cpu")


class Stopwatch:
    """Made-up seconds in [0, 1), another for each shape; `asked` lists what was measured."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, shape: LayerShape) -> float:
        self.asked.append(shape.key())
        digest = hashlib.blake2b(shape.key().encode(), digest_size=6).digest()
        return int.from_bytes(digest) / 2**48


class Wired(nn.Module):
    """A channel scale, a broadcast mask, a concat, a grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.scale = nn.Conv2d(12, 12, 1)
        self.mask = nn.Conv2d(12, 1, 1)
        self.left = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.wider = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.right = nn.Conv2d(12, 12, 1, groups=3)
        self.norm = nn.GroupNorm(4, 12)
        self.head = nn.Linear(48 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.scale(x.mean((2, 3), keepdim=True)))
        x = x * torch.sigmoid(self.mask(x))
        left = torch.relu(self.left(x)) + x
        right = self.norm(self.right(x))
        x = torch.cat([left, self.wider(x), right], 1)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


def graph_of(network: nn.Module) -> ArchGraph:
    return trace(network, (3, 16, 16))


def drawn(space: Space, n: int = 12) -> Candidates:
    return sample(space, SpaceSettings(), n, np.random.default_rng(0))


@pytest.mark.parametrize("tie", ["count", "dependency"])
@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "mobilenetv2", "wired"])
def test_candidates_take_as_long_as_their_graphs(name, tie):
    graph = graph_of(Wired() if name == "wired" else networks.build(name, 10, 3))
    space = Space(graph, tie=tie)
    candidates = drawn(space)
    stopwatch = Stopwatch()
    times = LayerTimes(CPU, measure=stopwatch)
    seconds = times.candidates(space, candidates)
    assert seconds.dtype == np.float64
    assert len(set(seconds)) > len(candidates) / 2  # some differ by less than 8 channels
    measured = len(stopwatch.asked)
    assert measured == len(set(stopwatch.asked))
    students = [space.apply(space.moves(candidates, row)) for row in range(len(candidates))]
    assert seconds.tolist() == [times.graph(student) for student in students]
    assert len(stopwatch.asked) == measured


def test_narrowest_students_take_as_long_as_their_graphs():
    """One channel per group: depthwise and grouped convolutions change their character."""
    space = Space(graph_of(Wired()), tie="dependency")
    identity = space.identity()
    kept = space.kept(np.full((1, space.num_tied), 0.999))
    candidate = space.resolve(identity.removed, kept, identity.skips)
    student = space.apply(space.moves(candidate, 0))
    times = LayerTimes(CPU, measure=Stopwatch())
    assert times.candidates(space, candidate).tolist() == [times.graph(student)]
    real = LayerTimes(CPU)
    assert real.graph(student) > 0


def test_layers_and_additions_are_summed():
    """Six layers; x + conv(x) is one addition, another skip a second one."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = torch.relu(x + self.second(x))
            return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))

    def by_kind(shape: LayerShape) -> float:
        return {"conv": 100.0, "relu": 10.0, "add": 1000.0}.get(shape.kind, 1.0)

    space = Space(graph_of(Residual()))
    kinds = [layer.kind for layer in space.graph.layers]
    assert kinds == ["conv", "conv", "relu", "adaptive_avg_pool", "flatten", "linear"]
    times = LayerTimes(CPU, measure=by_kind)
    teacher = space.identity()
    assert times.candidates(space, teacher).tolist() == [1213.0]

    skips = np.array([[edge == [0, 3] for edge in space.skips.tolist()]])
    assert times.candidates(space, Candidates(teacher.removed, teacher.kept, skips)) == [2213.0]

    removed = np.zeros((1, len(kinds)), dtype=bool)
    removed[0, [1, 2]] = True  # the sum that the removed relu read is still computed
    assert times.candidates(space, Candidates(removed, teacher.kept, teacher.skips)) == [1103.0]


def test_widths_within_a_multiple_of_eight_share_a_measurement():
    stopwatch = Stopwatch()
    times = LayerTimes(CPU, measure=stopwatch)

    def seconds(width: int) -> float:
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 10, 14), nn.Flatten())
        return times.graph(graph_of(network))

    assert seconds(17) == seconds(20) == seconds(24)
    assert len(stopwatch.asked) == 3
    assert stopwatch.asked[0].startswith('["conv", [[3, 16, 16]], [24, 14, 14],')
    assert stopwatch.asked[1].startswith('["conv", [[24, 14, 14]], [10, 1, 1],')
    assert seconds(25) != seconds(24)


def test_attributes_that_cost_no_time_share_a_measurement():
    stopwatch = Stopwatch()
    norms = [nn.BatchNorm2d(3, eps=eps, momentum=None) for eps in (1e-3, 1e-5)]
    LayerTimes(CPU, measure=stopwatch).graph(
        graph_of(nn.Sequential(*norms, nn.Dropout(0.1), nn.Dropout(0.2), nn.Flatten()))
    )
    assert len(stopwatch.asked) == 3


@pytest.fixture
def narrow() -> ArchGraph:
    return graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()))


def refuse(shape: LayerShape) -> float:
    raise AssertionError(f"{shape.key()} was measured again")


def test_a_cache_outlives_the_process(tmp_path, narrow):
    cache = tmp_path / "times.json"
    seconds = LayerTimes(CPU, cache=cache, measure=Stopwatch()).graph(narrow)
    assert LayerTimes(CPU, cache=cache, measure=refuse).graph(narrow) == seconds


def test_a_cache_keeps_conditions_apart(tmp_path, narrow):
    cache = tmp_path / "times.json"
    for batch in (1, 64):
        stopwatch = Stopwatch()
        LayerTimes(CPU, batch, cache, stopwatch).graph(narrow)
        assert len(stopwatch.asked) == 3
    times = LayerTimes(CPU, 1, cache, stopwatch := Stopwatch())
    times.graph(narrow)
    assert not stopwatch.asked
    torch.set_num_threads(2)
    times.graph(narrow)
    assert len(stopwatch.asked) == 3
    tables = json.loads(cache.read_text())["measured"]
    assert [(table["threads"], table["batch"]) for table in tables] == [(1, 1), (1, 64), (2, 1)]
    assert tables[0]["torch"] == torch.__version__
    assert all(table["device"] and len(table["seconds"]) == 3 for table in tables)


def test_two_processes_lose_nothing(tmp_path, narrow):
    cache = tmp_path / "times.json"
    first, second = (LayerTimes(CPU, batch, cache, Stopwatch()) for batch in (1, 2))
    first.graph(narrow)
    second.graph(narrow)
    assert len(json.loads(cache.read_text())["measured"]) == 2


def test_an_interrupt_keeps_what_was_measured(tmp_path, narrow):
    cache = tmp_path / "times.json"

    def interrupted(shape: LayerShape) -> float:
        if shape.kind == "flatten":
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        LayerTimes(CPU, cache=cache, measure=interrupted).graph(narrow)
    stopwatch = Stopwatch()
    LayerTimes(CPU, cache=cache, measure=stopwatch).graph(narrow)
    assert len(stopwatch.asked) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0, "measured": []}', '{"format": 1}'])
def test_another_file_is_no_cache_and_stays_as_it_is(tmp_path, text):
    cache = tmp_path / "settings.json"
    cache.write_text(text)
    with pytest.raises(EsnacError, match=r"settings\.json is no file of layer times"):
        LayerTimes(CPU, cache=cache)
    assert cache.read_text() == text


def test_an_empty_batch_is_refused():
    with pytest.raises(SettingsError, match="got 0"):
        LayerTimes(CPU, batch=0)
