"""The drawing is well-formed XML with a box for every layer and a line for every edge."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.draw import BOX_HEIGHT, BOX_WIDTH, draw
from esnac.graphs.trace import trace
from esnac.networks import build

SVG = "{http://www.w3.org/2000/svg}"


def boxes(text: str) -> dict[str, tuple[float, float, str]]:
    """Layer name to (x, y, fill)."""
    found = {}
    for group in ET.fromstring(text).iter(f"{SVG}g"):
        name = group.find(f"{SVG}title").text.partition(":")[0]
        box = group.find(f"{SVG}rect")
        found[name] = (float(box.get("x")), float(box.get("y")), box.get("fill"))
    return found


@pytest.fixture(scope="module")
def resnet() -> ArchGraph:
    return trace(build("resnet20", 10), (3, 32, 32))


@pytest.mark.parametrize("name", ["resnet20", "shufflenet"])
def test_one_box_a_layer_and_none_overlap(name: str) -> None:
    graph = trace(build(name, 10), (3, 32, 32))
    text = draw(graph)
    found = boxes(text)
    assert found.keys() == {layer.name for layer in graph.layers} | {"input"}
    places = sorted((x, y) for x, y, _ in found.values())
    for (x1, y1), (x2, y2) in itertools.pairwise(places):
        assert x1 != x2 or y2 - y1 >= BOX_HEIGHT
    root = ET.fromstring(text)
    assert max(y for _, y, _ in found.values()) + BOX_HEIGHT < float(root.get("height"))
    # The input's edge, and an arrow head for each.
    assert len(list(root.iter(f"{SVG}path"))) == 2 * (len(graph.edges()) + 1)


def test_readers_stand_below_what_they_read(resnet: ArchGraph) -> None:
    found = boxes(draw(resnet))
    for i, j in resnet.edges():
        assert found[resnet.layers[i].name][1] < found[resnet.layers[j].name][1]


def test_labels(resnet: ArchGraph) -> None:
    text = re.sub(r"<[^>]+>", "", draw(resnet))
    assert "64 layers" in text
    assert "conv 3\u00d73 16\u219232 /2" in text
    assert "linear 64\u219210" in text
    assert "relu 16 \u03a32" in text
    assert "16\u00d732\u00d732" in text


def test_a_removed_layer_is_pale(resnet: ArchGraph) -> None:
    assert 'class="pale"' not in draw(resnet)
    layers = list(resnet.layers)
    layers[4] = replace(layers[4], kind="identity", attributes={}, source=None)
    text = draw(ArchGraph(tuple(layers), resnet.input_shape))
    assert text.count('class="pale"') == 1
    assert "64 layers, 1 of them identities" in text
    assert boxes(text)[layers[4].name][2] != boxes(text)[layers[5].name][2]


def test_skip_edges_run_beside_the_boxes(resnet: ArchGraph) -> None:
    text = draw(resnet)
    lanes = [float(x) for x in re.findall(r'class="skip" d="M[^Q]+Q([\d.]+) ', text)]
    assert len(lanes) == 7  # 9 blocks, 2 of them with a convolution on the shortcut
    assert all(x > boxes(text)["conv1"][0] + BOX_WIDTH for x in lanes)


def test_names_are_escaped_and_the_file_is_written(tmp_path: Path) -> None:
    layer = Layer("a", "<b>&", (INPUT,), (3, 2, 2), (3, 2, 2), {"note": "\"'<&>"})
    path = tmp_path / "graph.svg"
    text = draw(ArchGraph((layer,), (3, 2, 2)), path)
    assert path.read_text(encoding="utf-8") == text
    assert "<b>&" in "".join(ET.fromstring(text).itertext())
