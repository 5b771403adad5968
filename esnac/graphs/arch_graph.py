"""An architecture as plain data: layers in topological order, each with the layers it reads.

A layer that reads several layers receives their sum, so a residual addition is no layer of its own;
the exceptions are `concat` (channels side by side) and `multiply` (product, as in squeeze-excite).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esnac.errors import EsnacError

#: The "layer" that stands for the network's input in `Layer.inputs`.
INPUT = -1

FORMAT = 1


@dataclass(frozen=True)
class Layer:
    """One node of the graph.

    `in_shape` and `out_shape` leave out the batch: (channels, height, width) or (features,). For
    `concat`, `in_shape` equals `out_shape`. `source` is the prefix of its tensors in the traced
    network's state_dict (`"layer1.0.conv1"`), or None for a layer without tensors.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class ArchGraph:
    """Layers in topological order; the last one is the network's output.

    `input_shape` leaves out the batch. Immutable: a move gives a new graph.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def num_classes(self) -> int:
        return self.layers[-1].out_shape[0]

    def edges(self) -> list[tuple[int, int]]:
        """Pairs (from, to) of layer numbers, the network's input left out."""
        return [(i, j) for j, layer in enumerate(self.layers) for i in layer.inputs if i != INPUT]

    def to_json(self) -> str:
        """A JSON text that `from_json` reads back to an equal graph."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "inputs": list(layer.inputs),
                "in_shape": list(layer.in_shape),
                "out_shape": list(layer.out_shape),
                "attributes": dict(layer.attributes),
                "source": layer.source,
            }
            for layer in self.layers
        ]
        content = {"format": FORMAT, "input_shape": list(self.input_shape), "layers": layers}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "architecture.json") -> ArchGraph:
        """Raises EsnacError when the text is no architecture of this format."""
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise EsnacError(
                    f"{where}: format {content['format']}, this version reads {FORMAT}."
                )
            layers = tuple(
                Layer(
                    name=row["name"],
                    kind=row["kind"],
                    inputs=tuple(row["inputs"]),
                    in_shape=tuple(row["in_shape"]),
                    out_shape=tuple(row["out_shape"]),
                    attributes={k: _frozen(v) for k, v in row["attributes"].items()},
                    source=row["source"],
                )
                for row in content["layers"]
            )
            graph = cls(layers, tuple(content["input_shape"]))
            graph._check(where)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EsnacError(f"{where} is not an architecture file ({error!r}).") from None
        return graph

    def _check(self, where: str | Path) -> None:
        for number, layer in enumerate(self.layers):
            if not layer.inputs or not all(INPUT <= i < number for i in layer.inputs):
                raise EsnacError(
                    f"{where}: layer {layer.name!r} reads layers that do not precede it."
                )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
