"""One pass over the nodes of an fx graph that turns them into layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from esnac.graphs import ops, translate
from esnac.graphs.arch_graph import INPUT, Layer
from esnac.graphs.assembly import Assembly, Value, Weight, call_name, holds_tensor
from esnac.graphs.calls import CALLS
from esnac.graphs.translate import RefusedError
from esnac.graphs.views import VIEWS, view

_HANDLERS = VIEWS | CALLS


class Walk:
    """Visits nodes in order; `layers` fills, `output` becomes the number of the last layer.

    `results` holds for every node what it gave on BATCH zeros, see Assembly. `visit` raises
    RefusedError for what the graph cannot hold.
    """

    def __init__(
        self, module: nn.Module, results: Mapping[fx.Node, Any], input_size: tuple[int, ...]
    ) -> None:
        self.layers = Assembly(module, results, input_size)
        self.output = INPUT
        self._visited: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> None:
        layers = self.layers
        self._visited.add(node)
        if node.op == "placeholder":
            layers.seen[node] = Value(INPUT, layers.input_size)
        elif node.op == "get_attr":
            layers.seen[node] = Weight(str(node.target))
        elif node.op == "output":
            self._finish(layers.known(node.args[0]))
        elif holds_tensor(layers.results[node]):
            args, kwargs = list(layers.known(node.args)), dict(layers.known(node.kwargs))
            if "input" in kwargs:
                args.insert(0, kwargs.pop("input"))
            apply = self._module if node.op == "call_module" else self._call
            layers.seen[node], in_place = apply(node, args, kwargs)
            if in_place and isinstance(args[0], Value):
                self._overwrite(args[0], layers.seen[node])

    def _finish(self, value: Any) -> None:
        if not isinstance(value, Value):
            raise RefusedError("a network must return one tensor")
        self.layers.require_plain(value)
        self.output = value.layer

    def _module(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> tuple[Value, bool]:
        """The value of a leaf module, and whether it works in place."""
        layers, path = self.layers, str(node.target)
        module = layers.module.get_submodule(path)
        if module._forward_hooks or module._forward_pre_hooks:
            raise RefusedError("it has forward hooks (weight_norm and the like); remove them first")
        if isinstance(module, (ops.Concat, ops.Multiply)):
            return layers.emit(node, module.kind, {}, args), False
        if len(args) != 1 or kwargs:
            raise RefusedError("it must be called with one tensor")
        if type(module) is nn.Identity:
            return args[0], False
        if isinstance(module, (nn.Flatten, nn.Unflatten)):
            return view(layers, node, args[0]), False
        layers.require_plain(args[0])
        kind, attributes = translate.from_module(module, args[0].shape)
        source = path if module.state_dict() else None
        value = layers.emit(node, kind, attributes, args, source)
        if source is not None:
            self._claim(module)
        return value, bool(getattr(module, "inplace", False))

    def _claim(self, module: nn.Module) -> None:
        """Raises RefusedError for tensors that the last layer has no place for or does not own."""
        row = self.layers.rows[-1]
        tensors = module.state_dict(keep_vars=True)
        if tensors.keys() != ops.build(Layer(**vars(row)), "meta").state_dict().keys():
            raise RefusedError(f"it has the tensors {', '.join(tensors)}")
        for tensor in tensors.values():
            self.layers.own(tensor, row.name)

    def _call(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """The value of a function or method, and whether it works in place."""
        layers, name = self.layers, call_name(node)
        base = name.rstrip("_")
        in_place = base != name or base in ("iadd", "imul") or bool(kwargs.get("inplace"))
        if args and isinstance(args[0], Weight):
            raise RefusedError(f"it reads the parameter {args[0].name} outside a layer")
        if base in _HANDLERS:
            try:
                return _HANDLERS[base](layers, node, *args, **kwargs), in_place
            except (TypeError, IndexError) as error:
                raise RefusedError(f"its arguments are unknown ({error})") from None
        if not args or not isinstance(args[0], Value):
            raise translate.unknown(name)
        module = translate.from_call(base, args[1:], kwargs)
        layers.require_plain(args[0])
        kind, attributes = translate.from_module(module, args[0].shape)
        return layers.emit(node, kind, attributes, args[:1]), in_place

    def _overwrite(self, old: Value, new: Any) -> None:
        """After an operation in place: who reads the old tensor later, reads the new one."""
        for node, value in self.layers.seen.items():
            if value == old:
                self.layers.seen[node] = new
            elif (
                isinstance(value, Value)
                and self._overlap(value, old)
                and not self._visited.issuperset(node.users)
            ):
                raise RefusedError("it works in place on part of a tensor that is read later")

    def _overlap(self, a: Value, b: Value) -> bool:
        """Whether one is a view of the other."""
        return a.layer in self._views(b.layer) or b.layer in self._views(a.layer)

    def _views(self, layer: int) -> set[int]:
        """The layer and those whose memory it shares."""
        rows, chain = self.layers.rows, {layer}
        while layer != INPUT and rows[layer].kind in ("slice", "flatten"):
            layer = rows[layer].inputs[0]
            chain.add(layer)
        return chain
