"""The kinds of layer: the module that computes one, and how it joins several inputs.

Modules never work in place: a layer's output may be read again by an added skip connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs.arch_graph import Layer

#: "sum": ((a + b) + c) goes into the layer; "concat" and "product": the layer takes all inputs.
Join = Literal["sum", "concat", "product"]

#: The builder of a module; a device of None means torch's default.
Build = Callable[[Layer, "torch.device | str | None"], nn.Module]


@dataclass(frozen=True)
class Operation:
    """What a kind of layer is."""

    build: Build
    join: Join = "sum"


class Part(nn.Module):
    """A layer that torch.nn lacks; tracing keeps it as one node and reads `attributes` back."""

    kind: ClassVar[str]

    def attributes(self) -> dict[str, Any]:
        return {}


class PassThrough(Part):
    """Gives its input back: a removed layer, or a sum that several layers read.

    Unlike nn.Identity it stays a layer when a student is traced again.
    """

    kind = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x


class Concat(Part):
    """Channels side by side."""

    kind = "concat"

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)


class Multiply(Part):
    """The product with broadcasting; n x C features scale the channels of n x C x H x W."""

    kind = "multiply"

    def forward(self, *inputs: Tensor) -> Tensor:
        rank = max(x.dim() for x in inputs)
        first, *others = (x if x.dim() == rank else x[:, :, None, None] for x in inputs)
        for other in others:
            first = first * other
        return first


class Slice(Part):
    """Channels `start` to `stop` (exclusive)."""

    kind = "slice"

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def attributes(self) -> dict[str, Any]:
        return {"start": self.start, "stop": self.stop}

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


class ChannelShuffle(Part):
    """nn.ChannelShuffle, whose backward is two to four times slower on the CPU.

    Keeps the memory format: the permutations of a channels-last tensor are views.
    """

    kind = "channel_shuffle"

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def attributes(self) -> dict[str, Any]:
        return {"groups": self.groups}

    def forward(self, x: Tensor) -> Tensor:
        split = (self.groups, x.shape[1] // self.groups)
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1)
            return x.unflatten(3, split).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
        return x.unflatten(1, split).transpose(1, 2).flatten(1, 2)


class StochasticDepth(Part):
    """Drops its input with probability `p` while training and scales the rest by 1 / (1 - p).

    `mode` "batch" drops all rows together, "row" each by itself (Huang et al. 2016,
    arXiv 1603.09382); the same draw from torch's generator as torchvision's.
    """

    kind = "stochastic_depth"

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def attributes(self) -> dict[str, Any]:
        return {"p": self.p, "mode": self.mode}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rows = x.shape[0] if self.mode == "row" else 1
        keep = x.new_empty([rows] + [1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * (keep.div_(1 - self.p) if self.p < 1 else keep)


#: Kinds without tensors that torch.nn has: the module, and {our attribute: its argument}.
TORCH_KINDS: dict[str, tuple[type[nn.Module], dict[str, str]]] = {
    "relu": (nn.ReLU, {}),
    "relu6": (nn.ReLU6, {}),
    "leaky_relu": (nn.LeakyReLU, {"slope": "negative_slope"}),
    "elu": (nn.ELU, {"alpha": "alpha"}),
    "gelu": (nn.GELU, {"approximate": "approximate"}),
    "silu": (nn.SiLU, {}),
    "hardswish": (nn.Hardswish, {}),
    "hardsigmoid": (nn.Hardsigmoid, {}),
    "sigmoid": (nn.Sigmoid, {}),
    "tanh": (nn.Tanh, {}),
    "softplus": (nn.Softplus, {}),
    "mish": (nn.Mish, {}),
    "max_pool": (
        nn.MaxPool2d,
        {
            "kernel": "kernel_size",
            "stride": "stride",
            "padding": "padding",
            "dilation": "dilation",
            "ceil_mode": "ceil_mode",
        },
    ),
    "avg_pool": (
        nn.AvgPool2d,
        {
            "kernel": "kernel_size",
            "stride": "stride",
            "padding": "padding",
            "ceil_mode": "ceil_mode",
            "count_include_pad": "count_include_pad",
        },
    ),
    "adaptive_avg_pool": (nn.AdaptiveAvgPool2d, {"size": "output_size"}),
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d, {"size": "output_size"}),
    "flatten": (nn.Flatten, {}),
    "dropout": (nn.Dropout, {"p": "p"}),
    "dropout2d": (nn.Dropout2d, {"p": "p"}),
}

#: Kinds that act on each number by itself, without tensors.
ACTIVATIONS = frozenset(
    {
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "gelu",
        "silu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "softplus",
        "mish",
    }
)


def _torch_kind(module: type[nn.Module], names: dict[str, str]) -> Operation:
    def make(layer: Layer, device: torch.device | str | None) -> nn.Module:
        return module(**{argument: layer.attributes[name] for name, argument in names.items()})

    return Operation(make)


def _part(part: type[Part], join: Join = "sum") -> Operation:
    return Operation(lambda layer, device: part(**layer.attributes), join=join)


class StridedPointwise(nn.Conv2d):
    """A strided 1x1 convolution that takes its pixels first where it trains in channels-last.

    On a CPU only: what torch does itself damages memory there (`runtime.without_known_faults`).
    """

    #: Read by `runtime.without_known_faults`.
    trains_in_channels_last = True

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        down, across = self.stride
        return conv2d(x[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups)


def _conv(layer: Layer, device: torch.device | str | None) -> nn.Module:
    a = layer.attributes
    sizes = [set(a[name]) for name in ("kernel", "stride", "padding")]
    strided_pointwise = sizes[0] == {1} and sizes[1] != {1} and sizes[2] == {0}
    make = StridedPointwise if strided_pointwise else nn.Conv2d
    return make(
        layer.in_shape[0],
        layer.out_shape[0],
        kernel_size=a["kernel"],
        stride=a["stride"],
        padding=a["padding"],
        dilation=a["dilation"],
        groups=a["groups"],
        bias=a["bias"],
        device=device,
    )


def _batch_norm(layer: Layer, device: torch.device | str | None) -> nn.Module:
    a = layer.attributes
    cls = nn.BatchNorm1d if len(layer.in_shape) == 1 else nn.BatchNorm2d
    channels = layer.out_shape[0]
    return cls(channels, a["eps"], a["momentum"], a["affine"], a["track"], device=device)


def _group_norm(layer: Layer, device: torch.device | str | None) -> nn.Module:
    a = layer.attributes
    return nn.GroupNorm(a["groups"], layer.out_shape[0], a["eps"], a["affine"], device=device)


def _linear(layer: Layer, device: torch.device | str | None) -> nn.Module:
    bias = layer.attributes["bias"]
    return nn.Linear(layer.in_shape[0], layer.out_shape[0], bias=bias, device=device)


OPERATIONS: dict[str, Operation] = {
    "conv": Operation(_conv),
    "batch_norm": Operation(_batch_norm),
    "group_norm": Operation(_group_norm),
    "linear": Operation(_linear),
    "concat": _part(Concat, "concat"),
    "multiply": _part(Multiply, "product"),
    "slice": _part(Slice),
    "channel_shuffle": _part(ChannelShuffle),
    "stochastic_depth": _part(StochasticDepth),
    "identity": _part(PassThrough),
    **{kind: _torch_kind(*row) for kind, row in TORCH_KINDS.items()},
}


def operation(kind: str) -> Operation:
    """Raises UnknownNameError for a kind that is none."""
    if kind not in OPERATIONS:
        raise UnknownNameError("kind of layer", kind, OPERATIONS)
    return OPERATIONS[kind]


def build(layer: Layer, device: torch.device | str | None = None) -> nn.Module:
    """The module of a layer from its attributes and shapes, with torch's initial weights.

    `device="meta"` leaves the weights out. Raises EsnacError when attributes are missing or do
    not fit the shapes.
    """
    make = operation(layer.kind).build
    try:
        return make(layer, device)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        detail = f"no attribute {error}" if isinstance(error, KeyError) else error
        raise EsnacError(
            f"Layer {layer.name!r} ({layer.kind}) cannot be built: {detail}."
        ) from None
