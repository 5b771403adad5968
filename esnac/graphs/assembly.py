"""The layers of a graph while tracing assembles them, and the tensors between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from esnac.graphs.arch_graph import INPUT
from esnac.graphs.translate import RefusedError

#: Rows of the zeros that the network is run on.
BATCH = 2

#: Kind of an addition, until it dissolves into its reader or becomes an identity.
ADD = "add"


class Shape(tuple[int, ...]):
    """Stands for a tensor of this shape (batch included) among the results of fx nodes."""


@dataclass
class Row:
    """A layer while the graph is being built."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class Value:
    """A layer's output as a node sees it: under `shape` (batch left out), in the same order.

    `swapped`: the number of groups whose axes have been transposed, on the way to a channel
    shuffle. `expanded`: n x C x 1 x 1 repeated over the image, which only a product can read.
    """

    layer: int
    shape: tuple[int, ...]
    swapped: int = 0
    expanded: bool = False


@dataclass(frozen=True)
class Pieces:
    """The result of split or chunk: ranges of channels of one value."""

    value: Value
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the network by its dotted name."""

    name: str


class Assembly:
    """The layers so far. Methods raise RefusedError for what the graph cannot hold.

    `results` has for every node what it gave on BATCH zeros, with Shapes for tensors; `seen` what
    the nodes visited so far stand for.
    """

    def __init__(
        self, module: nn.Module, results: Mapping[fx.Node, Any], input_size: tuple[int, ...]
    ) -> None:
        self.module = module
        self.results = results
        self.input_size = input_size
        self.rows: list[Row] = []
        self.seen: dict[fx.Node, Value | Pieces | Weight] = {}
        self._owners: dict[int, str] = {}

    def known(self, argument: Any) -> Any:
        """The argument with nodes replaced by values, or by numbers where they are no tensors."""
        return fx.node.map_arg(argument, lambda n: self.seen.get(n, self.results[n]))

    def emit(
        self,
        node: fx.Node,
        kind: str,
        attributes: dict[str, Any],
        inputs: Sequence[Any],
        source: str | None = None,
        out_shape: tuple[int, ...] | None = None,
    ) -> Value:
        """Adds a layer and gives its output.

        `out_shape` is given for the first of two layers that one node becomes.
        """
        if kind != "multiply":
            for value in inputs:
                self.require_plain(value)
        result = self.result_shape(node)
        out_shape = out_shape or result
        name = node.name if out_shape == result else f"{node.name}_first"
        in_shape = out_shape if kind in ("concat", "multiply") else inputs[0].shape
        if len(in_shape) not in _RANKS.get(kind, (1, 3)):
            raise RefusedError(f"it reads {times(in_shape)} per image")
        layers = tuple(value.layer for value in inputs)
        self.rows.append(Row(name, kind, layers, in_shape, out_shape, attributes, source))
        return Value(len(self.rows) - 1, out_shape)

    def result_shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node gives, batch left out."""
        shape = self.results[node]
        if not isinstance(shape, Shape) or len(shape) < 2 or shape[0] != BATCH:
            raise RefusedError("its result is not one row per image of the batch")
        return tuple(shape[1:])

    def base(self, value: Value) -> tuple[int, ...]:
        """The shape in which a value's layer gave it."""
        return self.input_size if value.layer == INPUT else self.rows[value.layer].out_shape

    def require_plain(self, value: Any) -> None:
        """Raises RefusedError unless a layer can read the value."""
        if isinstance(value, Weight):
            raise RefusedError(f"it reads the parameter {value.name} outside a layer")
        if not isinstance(value, Value):
            raise RefusedError("it reads something that is no tensor of a layer")
        if value.swapped or value.expanded or value.shape != self.base(value):
            raise RefusedError(f"it reads a tensor that was reshaped to {times(value.shape)}")

    def own(self, tensor: Any, layer: str) -> None:
        """Raises RefusedError for weights that another layer owns."""
        owner = self._owners.setdefault(id(tensor), layer)
        if owner != layer:
            raise RefusedError(
                f"it shares its weights with {owner}; give every use a module of its own"
            )


Handler = Callable[..., Any]

_RANKS = {
    "conv": (3,),
    "linear": (1,),
    "max_pool": (3,),
    "avg_pool": (3,),
    "adaptive_avg_pool": (3,),
    "adaptive_max_pool": (3,),
    "channel_shuffle": (3,),
    "dropout2d": (3,),
}


def call_name(node: fx.Node) -> str:
    """The name of a function or method of torch or operator; others with their module's name."""
    if isinstance(node.target, str):
        return node.target
    module = getattr(node.target, "__module__", None) or "torch"
    name = getattr(node.target, "__name__", str(node.target))
    return name if module.partition(".")[0] in ("torch", "_operator") else f"{module}.{name}"


def holds_tensor(result: Any) -> bool:
    """Whether a node's result is or contains a tensor; otherwise it is size arithmetic."""
    if isinstance(result, Shape):
        return True
    return isinstance(result, (tuple, list)) and any(holds_tensor(v) for v in result)


def is_scale(base: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Channel weights: C numbers seen as C x 1 x 1."""
    return len(shape) == 3 and shape[1:] == (1, 1) and base in (shape, shape[:1])


def require_channels(dim: int, shape: tuple[int, ...]) -> None:
    """Raises RefusedError unless `dim` (batch included) is the channels of `shape`."""
    if dim % (len(shape) + 1) != 1:
        raise RefusedError(f"it works along axis {dim}; only channels (axis 1) are")


def times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
