"""Calls that join several tensors, and functions that take weights as arguments."""

from __future__ import annotations

from typing import Any

from torch import fx

from esnac.graphs import translate
from esnac.graphs.assembly import (
    ADD,
    Assembly,
    Handler,
    Value,
    Weight,
    is_scale,
    require_channels,
    times,
)
from esnac.graphs.translate import RefusedError


def _add(
    layers: Assembly, node: fx.Node, a: Any, b: Any = None, *, other: Any = None, alpha: Any = 1
) -> Value:
    b = other if b is None else b
    if isinstance(a, Value) and _is_zero(b):
        return a
    if isinstance(b, Value) and _is_zero(a):  # sum([...]) starts with 0
        return b
    if not isinstance(a, Value) or not isinstance(b, Value) or alpha != 1:
        raise RefusedError("only tensors of layers can be added")
    if a.shape != b.shape:
        raise RefusedError(f"it adds {times(a.shape)} and {times(b.shape)}; shapes must agree")
    return layers.emit(node, ADD, {}, [a, b])


def _multiply(
    layers: Assembly, node: fx.Node, a: Any, b: Any = None, *, other: Any = None
) -> Value:
    values = [a, other if b is None else b]
    rank = len(layers.result_shape(node))
    for value in values:
        if not isinstance(value, Value):
            raise RefusedError("only tensors of layers can be multiplied")
        if not is_scale(layers.base(value), value.shape):
            layers.require_plain(value)
        if len(value.shape) != rank:
            raise RefusedError("its factors have different numbers of axes")
    return layers.emit(node, "multiply", {}, values)


def _concat(
    layers: Assembly, node: fx.Node, tensors: Any, dim: int = 0, *, axis: int | None = None
) -> Value:
    for value in tensors:
        layers.require_plain(value)
    require_channels(dim if axis is None else axis, tensors[0].shape)
    if len(tensors) == 1:
        return tensors[0]
    return layers.emit(node, "concat", {}, tensors)


def _mean(
    layers: Assembly, node: fx.Node, x: Value, dim: Any = None, keepdim: bool = False
) -> Value:
    axes = sorted(d % 4 for d in dim) if isinstance(dim, (tuple, list)) else None
    if axes != [2, 3] or len(x.shape) != 3:
        raise RefusedError("only a mean over the image, as in x.mean((2, 3)), is a layer")
    pooled = (x.shape[0], 1, 1)
    value = layers.emit(node, "adaptive_avg_pool", {"size": (1, 1)}, [x], out_shape=pooled)
    return value if keepdim else layers.emit(node, "flatten", {}, [value])


def _conv2d(
    layers: Assembly,
    node: fx.Node,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    source = _weights(layers, node, weight=weight, bias=bias)
    kernel = tuple(layers.module.get_parameter(weight.name).shape[2:])
    kind, attributes = translate.conv(kernel, stride, padding, dilation, groups, bias is not None)
    return layers.emit(node, kind, attributes, [x], source)


def _linear(layers: Assembly, node: fx.Node, x: Value, weight: Any, bias: Any = None) -> Value:
    source = _weights(layers, node, weight=weight, bias=bias)
    return layers.emit(node, "linear", {"bias": bias is not None}, [x], source)


def _batch_norm(
    layers: Assembly,
    node: fx.Node,
    x: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    if training and running_mean is not None:
        raise RefusedError("it uses batch statistics in evaluation; pass training=self.training")
    source = _weights(
        layers, node, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var
    )
    attributes = {"eps": eps, "momentum": momentum, "affine": weight is not None}
    attributes["track"] = running_mean is not None
    return layers.emit(node, "batch_norm", attributes, [x], source)


def _group_norm(
    layers: Assembly,
    node: fx.Node,
    x: Value,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Value:
    source = _weights(layers, node, weight=weight, bias=bias)
    attributes = {"groups": num_groups, "eps": eps, "affine": weight is not None}
    return layers.emit(node, "group_norm", attributes, [x], source)


def _weights(layers: Assembly, node: fx.Node, **weights: Any) -> str | None:
    """The common prefix of a function's weights, which must be called as in torch.nn."""
    sources = set()
    for name, weight in weights.items():
        if weight is None:
            continue
        if not isinstance(weight, Weight) or weight.name.rpartition(".")[2] != name:
            raise RefusedError(f"its {name} must be a parameter of the name '{name}'")
        path = weight.name.rpartition(".")[0]
        sources.add(path)
        owner = layers.module.get_submodule(path)
        layers.own(getattr(owner, name), node.name)
    if len(sources) > 1:
        raise RefusedError("its weights belong to several modules")
    return sources.pop() if sources else None


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


CALLS: dict[str, Handler] = {
    **dict.fromkeys(["add", "iadd"], _add),
    **dict.fromkeys(["mul", "imul", "multiply"], _multiply),
    **dict.fromkeys(["cat", "concat", "concatenate"], _concat),
    "mean": _mean,
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
}
