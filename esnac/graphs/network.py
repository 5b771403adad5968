"""The network that an architecture describes, and the teacher's weights in its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError, WeightsError
from esnac.graphs import ops
from esnac.graphs.arch_graph import ArchGraph

#: Buffers that files older than torch 1.0 lack; they only count training steps.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Preparation:
    """What a network expects of its inputs, and the names of what it tells apart.

    `mean` and `std` have one value per channel, in units of the full range (0..255 -> 0..1).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (n x C x H x W) as the network's inputs, float32: (x / 255 - mean) / std."""
        shape = (1, -1, 1, 1)
        mean, std = (images.new_tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        return (images.float() / 255 - mean.view(shape)) / std.view(shape)


class StudentNetwork(nn.Module):
    """Runs an ArchGraph: n x C x H x W images to n x num_classes logits.

    Each layer is a submodule of its name, so the state_dict's keys are `<layer name>.<tensor>`.
    With `weights` (for every tensor; copied, never shared) nothing is drawn at random and the
    network takes their dtype and device; without, torch's initialisation applies. Raises
    WeightsError when the weights do not fit, EsnacError for a graph that cannot be built.

    `preparation` says how to make inputs of images, where that is known.
    """

    preparation: Preparation | None

    def __init__(self, graph: ArchGraph, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.preparation = None
        self._plan = _plan(graph)
        for layer in graph.layers:
            if not layer.name.isidentifier() or hasattr(self, layer.name):
                raise EsnacError(f"Layer name {layer.name!r} is taken or no valid name; change it.")
            self.add_module(layer.name, ops.build(layer, None if weights is None else "meta"))
        if weights is not None:
            self._adopt(weights)

    def forward(self, x: Tensor) -> Tensor:
        # The input stands last, where the layer number -1 (INPUT) finds it.
        values: list[Any] = [None] * len(self._plan) + [x]
        modules: dict[str, Any] = self._modules
        for number, (name, inputs, joins, spent) in enumerate(self._plan):
            x = values[inputs[0]]
            if joins:
                x = modules[name](*[values[i] for i in inputs])
            else:
                for i in inputs[1:]:
                    x = x + values[i]
                x = modules[name](x)
            values[number] = x
            for i in spent:
                values[i] = None
        return x

    def _adopt(self, weights: Mapping[str, Tensor]) -> None:
        expected = {key: tuple(tensor.shape) for key, tensor in self.state_dict().items()}
        check_weights(expected, weights)
        copies = {key: weights[key].detach().clone() for key in expected}
        self.load_state_dict(copies, assign=True)


def _plan(graph: ArchGraph) -> list[tuple[str, tuple[int, ...], bool, tuple[int, ...]]]:
    """Per layer: name, inputs, whether its module takes them all, outputs not read after it."""
    last_reader = {i: number for number, layer in enumerate(graph.layers) for i in layer.inputs}
    plan = []
    for number, layer in enumerate(graph.layers):
        spent = tuple(i for i in dict.fromkeys(layer.inputs) if last_reader[i] == number)
        plan.append((layer.name, layer.inputs, ops.operation(layer.kind).join != "sum", spent))
    return plan


def sources(network: nn.Module) -> dict[str, str]:
    """What the layers of a StudentNetwork, by name, were called in the traced network, if known."""
    if not isinstance(network, StudentNetwork):
        return {}
    return {layer.name: layer.source for layer in network.graph.layers if layer.source}


def is_free_name(name: str) -> bool:
    """Whether a layer may have this name, that is, nn.Module has no attribute of this name."""
    return name not in ("graph", "preparation", "_plan") and not hasattr(_PLAIN, name)


_PLAIN = nn.Module()


def teacher_weights(
    graph: ArchGraph, state_dict: Mapping[str, Tensor], *, ignore_unused: bool = False
) -> dict[str, Tensor]:
    """Weights for the unmoved graph: `<source>.<tensor>` becomes `<layer name>.<tensor>`.

    The tensors are not copied. Raises WeightsError when one is missing, has another shape, or is
    not used by the graph (`ignore_unused` allows that, for a network with modules it never runs).
    A missing step counter of a batch norm becomes 0.
    """
    sources: dict[str, str] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for layer in graph.layers:
        if layer.source is None:
            continue
        prefix = f"{layer.source}." if layer.source else ""
        for tensor, value in ops.build(layer, "meta").state_dict().items():
            expected[prefix + tensor] = tuple(value.shape)
            sources[prefix + tensor] = f"{layer.name}.{tensor}"
    given = dict(state_dict)
    for key in expected:
        if key.endswith(COUNTER) and key not in given:
            given[key] = torch.tensor(0)
    if ignore_unused:
        given = {key: value for key, value in given.items() if key in expected}
    check_weights(expected, given)
    return {name: given[key] for key, name in sources.items()}


def check_weights(expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    """Raises WeightsError, naming tensors, unless keys and shapes agree exactly."""
    problems = []
    if missing := [key for key in expected if key not in weights]:
        problems.append(f"missing: {_some(missing)}")
    if unknown := [key for key in weights if key not in expected]:
        problems.append(f"not in the network: {_some(unknown)}")
    wrong = [
        f"{key} is {tuple(weights[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if wrong:
        problems.append(f"other shapes: {_some(wrong)}")
    if problems:
        raise WeightsError(f"These weights are of another network ({'; '.join(problems)}).")


def _some(items: list[str], most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
