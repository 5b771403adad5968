"""An architecture as a standalone SVG drawing, from top to bottom.

Rows are distances from the input, so parallel branches stand side by side. Edges that would cross
boxes run through lanes at the right of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.ops import ACTIVATIONS

BOX_WIDTH, BOX_HEIGHT = 216, 22
ROW, COLUMN = 34, 236
LANE = 9
MARGIN = 24
SHAPES = 92  # width of the column of shapes at the left

#: Fill and stroke by family of kinds.
_COLOURS = {
    "conv": ("#cfe2f3", "#3d6d99"),
    "linear": ("#d9d2e9", "#674ea7"),
    "norm": ("#fff2cc", "#b08d1e"),
    "activation": ("#d9ead3", "#5a8a46"),
    "pool": ("#f9d9c0", "#b5651d"),
    "join": ("#d0ece9", "#2f7f79"),
    "other": ("#e4e4e4", "#707070"),
    "removed": ("#fafafa", "#cccccc"),
}

_FAMILIES = {
    "batch_norm": "norm",
    "group_norm": "norm",
    "concat": "join",
    "multiply": "join",
    "slice": "join",
    "channel_shuffle": "join",
    "identity": "removed",
}

_STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;font-size:11px;fill:#222}"
    ".title{font-size:14px;font-weight:bold}.shape{fill:#777;text-anchor:end}"
    ".kind{font-weight:bold}.pale,.pale .kind{fill:#aaa;font-weight:normal}"
    "path{fill:none;stroke:#555;stroke-width:1.1}path.skip{stroke:#a33a3a}"
    ".tip{fill:#555}.skip-tip{fill:#a33a3a}"
)


@dataclass(frozen=True)
class _Place:
    """Row and column of a box; number -1 is the input's."""

    row: int
    column: int

    @property
    def left(self) -> float:
        return MARGIN + SHAPES + self.column * COLUMN

    @property
    def right(self) -> float:
        return self.left + BOX_WIDTH

    @property
    def centre(self) -> float:
        return self.left + BOX_WIDTH / 2

    @property
    def top(self) -> float:
        return MARGIN + 30 + self.row * ROW

    @property
    def bottom(self) -> float:
        return self.top + BOX_HEIGHT

    @property
    def middle(self) -> float:
        return self.top + BOX_HEIGHT / 2


def draw(graph: ArchGraph, path: str | Path | None = None) -> str:
    """The SVG text, also written to `path` if one is given.

    A box has the layer's kind, kernel, channels and stride; pointing at it shows name and
    attributes. Identities (removed layers) are pale.
    """
    places = _places(graph)
    lanes = _lanes(places, [e for e in _edges(graph) if not _clear(places, *e)])
    straight = [e for e in _edges(graph) if e not in lanes]
    right = max([p.right for p in places.values()] + list(lanes.values()))
    bottom = max(p.bottom for p in places.values())
    body = [_title(graph)]
    body += [_straight(places[i], places[j]) for i, j in straight]
    body += [_jump(places[i], places[j], x) for (i, j), x in lanes.items()]
    body += _shapes(graph, places)
    body.append(_box(places[INPUT], "other", "input", _times(graph.input_shape), "input"))
    body += [_layer(layer, places[number]) for number, layer in enumerate(graph.layers)]
    width, height = round(right + MARGIN), round(bottom + MARGIN)
    text = "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _edges(graph: ArchGraph) -> list[tuple[int, int]]:
    """Pairs (from, to), each once, the input's included."""
    return [(i, j) for j, layer in enumerate(graph.layers) for i in dict.fromkeys(layer.inputs)]


def _places(graph: ArchGraph) -> dict[int, _Place]:
    """Row: the longest way from the input. Column: below the leftmost input, else the next free."""
    places = {INPUT: _Place(0, 0)}
    taken = {(0, 0)}
    for number, layer in enumerate(graph.layers):
        row = 1 + max(places[i].row for i in layer.inputs)
        column = min(places[i].column for i in layer.inputs)
        while (row, column) in taken:
            column += 1
        taken.add((row, column))
        places[number] = _Place(row, column)
    return places


def _clear(places: dict[int, _Place], i: int, j: int) -> bool:
    """Whether the way straight down from i to the row of j is free of boxes."""
    a, b = places[i], places[j]
    return not any(p.column == a.column and a.row < p.row < b.row for p in places.values())


def _lanes(
    places: dict[int, _Place], jumps: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """x of the vertical part of each edge: right of all boxes it passes, short edges innermost."""
    widest: dict[int, float] = {}
    for place in places.values():
        widest[place.row] = max(widest.get(place.row, 0), place.right)
    used: dict[int, list[tuple[int, int]]] = {}
    lanes = {}
    for i, j in sorted(jumps, key=lambda e: (places[e[1]].row - places[e[0]].row, e)):
        start, stop = places[i].row, places[j].row
        lane = int(max(widest[row] for row in range(start, stop + 1)) // LANE) + 2
        while any(start < b and a < stop for a, b in used.get(lane, [])):
            lane += 1
        used.setdefault(lane, []).append((start, stop))
        lanes[i, j] = float(lane * LANE)
    return lanes


def _straight(a: _Place, b: _Place) -> str:
    start = b.top - (ROW - BOX_HEIGHT)
    half = (b.top - start) / 2
    return (
        f'<path d="M{a.centre:g} {a.bottom:g}V{start:g}C{a.centre:g} {start + half:g} '
        f'{b.centre:g} {start + half:g} {b.centre:g} {b.top - 4:g}"/>'
        f'<path class="tip" d="M{b.centre:g} {b.top:g}l-3.5 -6h7z"/>'
    )


def _jump(a: _Place, b: _Place, x: float) -> str:
    """Out of the right side below its middle, through the lane, into the right side from above."""
    bend, start, stop = 8, a.middle + 4, b.middle - 4
    return (
        f'<path class="skip" d="M{a.right:g} {start:g}H{x - bend:g}Q{x:g} {start:g} {x:g} '
        f'{start + bend:g}V{stop - bend:g}Q{x:g} {stop:g} {x - bend:g} {stop:g}H{b.right + 4:g}"/>'
        f'<path class="skip-tip" d="M{b.right:g} {stop:g}l6 -3.5v7z"/>'
    )


def _shapes(graph: ArchGraph, places: dict[int, _Place]) -> list[str]:
    """The output shape at the left, wherever it differs from that of the row above."""
    texts = []
    last: tuple[int, ...] | None = None
    for number, layer in enumerate(graph.layers):
        place = places[number]
        if place.column == 0 and layer.out_shape != last:
            last = layer.out_shape
            x, y = MARGIN + SHAPES - 10, place.middle + 4
            texts.append(f'<text class="shape" x="{x}" y="{y:g}">{_times(last)}</text>')
    return texts


def _title(graph: ArchGraph) -> str:
    identities = sum(layer.kind == "identity" for layer in graph.layers)
    text = f"{len(graph)} layers" + (f", {identities} of them identities" if identities else "")
    return f'<text class="title" x="{MARGIN}" y="{MARGIN + 8}">{text}</text>'


def _layer(layer: Layer, place: _Place) -> str:
    attributes = ", ".join(f"{k}={v}" for k, v in layer.attributes.items())
    hint = f"{layer.name}: {layer.kind}({attributes}) {layer.in_shape} -> {layer.out_shape}"
    return _box(place, _family(layer.kind), layer.kind, _details(layer), hint)


def _family(kind: str) -> str:
    if kind in ACTIVATIONS:
        return "activation"
    if kind.endswith("_pool"):
        return "pool"
    return _FAMILIES.get(kind, kind if kind in _COLOURS else "other")


def _box(place: _Place, family: str, kind: str, details: str, hint: str) -> str:
    fill, stroke = _COLOURS[family]
    pale = ' class="pale"' if family == "removed" else ""
    return (
        f"<g><title>{escape(hint)}</title>"
        f'<rect x="{place.left:g}" y="{place.top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
        f'rx="4" fill="{fill}" stroke="{stroke}"/>'
        f'<text{pale} x="{place.left + 8:g}" y="{place.middle + 4:g}">'
        f'<tspan class="kind">{escape(kind)}</tspan> {escape(details)}</text></g>'
    )


def _details(layer: Layer) -> str:
    """Kernel, channels and what else differs from the usual."""
    a: dict[str, Any] = dict(layer.attributes)
    parts = []
    if "kernel" in a:
        parts.append(_times(a["kernel"]))
    if layer.in_shape[0] != layer.out_shape[0] or layer.kind in ("conv", "linear"):
        parts.append(f"{layer.in_shape[0]}\u2192{layer.out_shape[0]}")
    else:
        parts.append(str(layer.out_shape[0]))
    if "stride" in a and set(a["stride"]) != {1}:
        parts.append(f"/{a['stride'][0]}")
    if a.get("groups", 1) != 1:
        parts.append(f"groups {a['groups']}")
    if "start" in a:
        parts.append(f"[{a['start']}:{a['stop']}]")
    if "p" in a:
        parts.append(f"p={a['p']:g}")
    if len(layer.inputs) > 1 and layer.kind not in ("concat", "multiply"):
        parts.append(f"\u03a3{len(layer.inputs)}")
    return " ".join(parts)


def _times(shape: Sequence[int]) -> str:
    return "\u00d7".join(map(str, shape))
