"""From a network to its ArchGraph through torch.fx.

The network is traced with torch.nn modules as leaves and run once on zeros, so every fx node has a
shape and size arithmetic a value. Then `Walk` turns nodes into layers in the order of execution,
and additions that only one layer reads become several inputs of that layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from esnac.errors import EsnacError, UnsupportedLayerError
from esnac.graphs import ops
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.assembly import ADD, BATCH, Row, Shape
from esnac.graphs.network import is_free_name
from esnac.graphs.translate import RefusedError
from esnac.graphs.walk import Walk
from esnac.runtime import evaluating

_TORCH = str(Path(torch.__file__).parent)


def trace(module: nn.Module, input_size: tuple[int, ...]) -> ArchGraph:
    """The graph of a network that takes one tensor n x `input_size` and returns one.

    Describes the network as it is in evaluation. The module is not changed. Raises
    UnsupportedLayerError, with the line of the network's source, for anything that has no layer,
    for weights that are used twice, for several inputs or outputs and for control flow that
    depends on data; EsnacError when the network does not run on this input size.
    """
    input_size = tuple(input_size)
    with evaluating(module), torch.no_grad():
        graph = _fx_graph(module)
        values = _run(module, graph, input_size)
    walk = Walk(module, values, input_size)
    for node in graph.nodes:
        try:
            walk.visit(node)
        except RefusedError as reason:
            target = _target(module, node)
            raise UnsupportedLayerError(
                f"{_place(node)}: {node.name} ({target}) is not supported: {reason}."
            ) from None
    rows = _live(walk.layers.rows, walk.output)
    rows = _dissolve_sums(rows)
    if not rows:
        raise UnsupportedLayerError("The network returns its input: it has no layers.")
    return ArchGraph(tuple(_named(rows)), input_size)


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, ops.Part | ops.StridedPointwise) or type(m).__name__ == "StochasticDepth":
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _Recorder(fx.Interpreter):
    """Runs the graph and keeps what each node gave, with a Shape in place of every tensor."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.values: dict[fx.Node, Any] = {}
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        result = super().run_node(n)
        self.values[n] = _shapes(result)
        return result


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(value.shape)
    if type(value) in (tuple, list):
        return type(value)(_shapes(v) for v in value)
    return value


def _fx_graph(module: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # the network's own code runs here
        raise UnsupportedLayerError(
            f"{_place_of_error(error)}: torch.fx cannot trace this ({_first_line(error)}). "
            "Control flow and Python functions must not depend on tensors."
        ) from error
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(inputs[:1] + [n for n in inputs[1:] if n.users or not n.args]) != 1:
        names = ", ".join(str(n.target) for n in inputs)
        raise UnsupportedLayerError(f"The network must take one tensor, but takes: {names}.")
    return graph


def _run(module: nn.Module, graph: fx.Graph, input_size: tuple[int, ...]) -> dict[fx.Node, Any]:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    zeros = torch.zeros((BATCH, *input_size), dtype=like.dtype, device=like.device)
    recorder = _Recorder(module, graph)
    try:
        recorder.run(zeros)
    except Exception as error:  # the network's own code runs here
        where = "" if recorder.node is None else f"{_place(recorder.node)}: {recorder.node.name}: "
        size = " x ".join(map(str, input_size))
        raise EsnacError(
            f"{where}the network does not run on an input of {size}: {_first_line(error)}."
        ) from error
    return recorder.values


def _live(rows: list[Row], output: int) -> list[Row]:
    """The layers that the output depends on, renumbered; the output becomes the last."""
    needed = {output} - {INPUT}
    for number in range(output, INPUT, -1):
        if number in needed:
            needed |= {i for i in rows[number].inputs if i != INPUT}
    return _renumbered(rows, sorted(needed))


def _renumbered(rows: list[Row], kept: list[int]) -> list[Row]:
    new = {INPUT: INPUT} | {old: number for number, old in enumerate(kept)}
    for old in kept:
        rows[old].inputs = tuple(new[i] for i in rows[old].inputs)
    return [rows[old] for old in kept]


def _dissolve_sums(rows: list[Row]) -> list[Row]:
    """Moves an addition into its only reader if that reader sums; the others become identities."""
    readers: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        for i in row.inputs:
            readers.setdefault(i, []).append(number)
    kept = []
    for number, row in enumerate(rows):
        reader = rows[readers[number][0]] if len(readers.get(number, [])) == 1 else None
        if row.kind != ADD or reader is None or not _takes_over(reader, number):
            row.kind = "identity" if row.kind == ADD else row.kind
            kept.append(number)
        else:
            # (a + b) + c and a + b + c are the same sum; a + (b + c) is not.
            reader.inputs = row.inputs + reader.inputs[1:]
    return _renumbered(rows, kept)


def _takes_over(reader: Row, number: int) -> bool:
    if reader.kind == ADD:
        return reader.inputs[0] == number
    return reader.inputs == (number,) and ops.operation(reader.kind).join == "sum"


def _named(rows: list[Row]) -> Iterator[Layer]:
    used: set[str] = set()
    for row in rows:
        name = row.name
        while name in used or not is_free_name(name):
            name += "_"
        used.add(name)
        yield Layer(
            name, row.kind, row.inputs, row.in_shape, row.out_shape, row.attributes, row.source
        )


def _target(module: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{type(module.get_submodule(str(node.target))).__name__} at {node.target}"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    target: Callable[..., Any] | str = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _place(node: fx.Node) -> str:
    """The line of the network's own code that made a node: "line 12 of mynet.py"."""
    frames = re.findall(r'File "(.+)", line (\d+)', node.stack_trace or "")
    return _innermost([(file, int(line)) for file, line in frames])


def _place_of_error(error: Exception) -> str:
    frames = []
    step = error.__traceback__
    while step is not None:
        frames.append((step.tb_frame.f_code.co_filename, step.tb_lineno))
        step = step.tb_next
    return _innermost([frame for frame in frames if frame[0] != __file__])


def _innermost(frames: list[tuple[str, int]]) -> str:
    own = [(file, line) for file, line in frames if not file.startswith(_TORCH)]
    if not own:
        return "the network"
    file, line = own[-1]
    return f"line {line} of {Path(file).name}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
