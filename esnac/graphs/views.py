"""Calls that look at a tensor under another shape, or cut channels out of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import fx

from esnac.graphs.assembly import (
    Assembly,
    Handler,
    Pieces,
    Value,
    call_name,
    is_scale,
    require_channels,
)
from esnac.graphs.translate import RefusedError


def view(layers: Assembly, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """Any call that keeps the order of the numbers: flatten, or a step of a channel shuffle."""
    new = layers.result_shape(node)
    base = layers.base(x)
    if x.expanded:
        raise RefusedError("it reshapes an expanded tensor")
    if x.swapped:
        if new != base:
            raise RefusedError("a transposed tensor must return to its shape (channel shuffle)")
        plain = Value(x.layer, base)
        return layers.emit(node, "channel_shuffle", {"groups": x.swapped}, [plain])
    if len(new) == 1 and len(base) > 1:
        return layers.emit(node, "flatten", {}, [Value(x.layer, base)])
    return Value(x.layer, new)


def _transpose(layers: Assembly, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """The first half of a channel shuffle: n x groups x C/groups x ... with both swapped."""
    base, shape = layers.base(x), x.shape
    axes = _axes(layers, node, len(shape) + 1)
    if (
        len(base) != 3
        or len(shape) < 3
        or x.swapped
        or shape[0] * shape[1] != base[0]
        or axes != [0, 2, 1, *range(3, len(shape) + 1)]
    ):
        raise RefusedError("only the transposition of a channel shuffle is")
    return Value(x.layer, layers.result_shape(node), swapped=shape[0])


def _axes(layers: Assembly, node: fx.Node, rank: int) -> list[int]:
    """The order of axes that a transpose or permute leaves."""
    _, *args = layers.known(node.args)
    args += [v for k, v in layers.known(node.kwargs).items() if k != "input"]
    flat = [i for a in args for i in (a if isinstance(a, (tuple, list)) else [a])]
    flat = [i % rank for i in flat]
    if call_name(node) == "permute":
        return flat
    axes = list(range(rank))
    axes[flat[0]], axes[flat[1]] = flat[1], flat[0]
    return axes


def _expand(layers: Assembly, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    if x.shape == layers.result_shape(node):
        return x
    if not is_scale(layers.base(x), x.shape):
        raise RefusedError("only channel weights n x C x 1 x 1 can be expanded")
    return replace(x, expanded=True)


def _getitem(layers: Assembly, node: fx.Node, x: Value | Pieces, index: Any) -> Value:
    if isinstance(x, Pieces):
        if not isinstance(index, int):
            raise RefusedError("the pieces of a split must be taken one by one")
        start, stop = x.ranges[index]
        return _slice(layers, node, x.value, start, stop)
    index = index if isinstance(index, tuple) else (index,)
    whole = [i is None or i is Ellipsis or i == slice(None) for i in index]
    moves_nothing = math.prod(layers.result_shape(node)) == math.prod(x.shape)
    if moves_nothing and all(w or i in (0, -1) for w, i in zip(whole, index, strict=True)):
        return view(layers, node, x)
    rest = all(w and i is not None for w, i in zip(whole[2:], index[2:], strict=True))
    if len(index) < 2 or index[0] != slice(None) or not isinstance(index[1], slice) or not rest:
        raise RefusedError("only channels can be cut out, as in x[:, a:b]")
    start, stop, step = index[1].indices(x.shape[0])
    if step != 1:
        raise RefusedError("channels can be cut out with step 1 only")
    return _slice(layers, node, x, start, stop)


def _split(layers: Assembly, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Pieces:
    layers.require_plain(x)
    require_channels(kwargs.get("dim", args[1] if len(args) > 1 else 0), x.shape)
    ranges, start = [], 0
    for shape in layers.results[node]:
        ranges.append((start, start + shape[1]))
        start += shape[1]
    return Pieces(x, tuple(ranges))


def _narrow(layers: Assembly, node: fx.Node, x: Value, dim: int, start: int, length: int) -> Value:
    require_channels(dim, x.shape)
    return _slice(layers, node, x, start, start + length)


def _slice(layers: Assembly, node: fx.Node, x: Value, start: int, stop: int) -> Value:
    if (start, stop) == (0, x.shape[0]):
        return x
    return layers.emit(node, "slice", {"start": start, "stop": stop}, [x])


def _same(layers: Assembly, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    return x


VIEWS: dict[str, Handler] = {
    **dict.fromkeys(["contiguous", "clone"], _same),
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"], view),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims", "permute"], _transpose),
    **dict.fromkeys(["expand", "expand_as"], _expand),
    **dict.fromkeys(["chunk", "split", "split_with_sizes", "tensor_split"], _split),
    "narrow": _narrow,
    "getitem": _getitem,
}
