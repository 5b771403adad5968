"""What a torch.nn module or a call of a torch function is as a kind of layer with attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from esnac.graphs.ops import TORCH_KINDS, Part, StridedPointwise


class RefusedError(Exception):
    """The reason why the graph has no layer for an operation; `trace` adds node and line."""


#: Functions and methods of tensors without weights: the equivalent module, and the names of its
#: arguments in the function's order, the input left out.
_CALLS: dict[str, tuple[type[nn.Module], str]] = {
    "relu": (nn.ReLU, "inplace"),
    "relu6": (nn.ReLU6, "inplace"),
    "leaky_relu": (nn.LeakyReLU, "negative_slope inplace"),
    "elu": (nn.ELU, "alpha inplace"),
    "gelu": (nn.GELU, "approximate"),
    "silu": (nn.SiLU, "inplace"),
    "hardswish": (nn.Hardswish, "inplace"),
    "hardsigmoid": (nn.Hardsigmoid, "inplace"),
    "sigmoid": (nn.Sigmoid, ""),
    "tanh": (nn.Tanh, ""),
    "softplus": (nn.Softplus, "beta threshold"),
    "mish": (nn.Mish, "inplace"),
    "max_pool2d": (nn.MaxPool2d, "kernel_size stride padding dilation ceil_mode return_indices"),
    "avg_pool2d": (
        nn.AvgPool2d,
        "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    ),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, "output_size"),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d, "output_size return_indices"),
    "dropout": (nn.Dropout, "p training inplace"),
    "dropout2d": (nn.Dropout2d, "p training inplace"),
    "channel_shuffle": (nn.ChannelShuffle, "groups"),
}

_KINDS = {module: kind for kind, (module, _) in TORCH_KINDS.items()}

#: Attributes that the graph holds as (height, width).
_SPATIAL = ("kernel", "stride", "padding", "dilation", "size")

#: Arguments that must keep torch's default, since no attribute holds them.
_FIXED = {"return_indices": False, "divisor_override": None, "beta": 1, "threshold": 20}

_HINTS = {
    "softmax": "let the network return logits",
    "log_softmax": "let the network return logits",
    "LogSoftmax": "let the network return logits",
    "Softmax": "let the network return logits",
    "sub": "only additions and products of layers are",
    "truediv": "only additions and products of layers are",
}


def unknown(name: str) -> RefusedError:
    hint = f"; {_HINTS[name]}" if name in _HINTS else ""
    return RefusedError(f"the graph has no such layer{hint}")


def from_module(module: Any, in_shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """(kind, attributes) of a module that reads one tensor of `in_shape` (batch left out).

    Only the exact classes of torch.nn and our own parts: a subclass may compute something else.
    Raises RefusedError.
    """
    if isinstance(module, Part):
        return module.kind, module.attributes()
    if type(module).__name__ == "StochasticDepth" and hasattr(module, "mode"):
        return "stochastic_depth", {"p": float(module.p), "mode": str(module.mode)}
    if isinstance(module, nn.ChannelShuffle):
        return "channel_shuffle", {"groups": module.groups}
    if type(module) in _BY_CLASS:
        return _BY_CLASS[type(module)](module)
    if type(module) not in _KINDS:
        raise unknown(type(module).__name__)
    for name, default in _FIXED.items():
        if getattr(module, name, default) != default:
            raise RefusedError(f"{name}={getattr(module, name)!r} is no attribute of a layer")
    kind = _KINDS[type(module)]
    attributes = {name: getattr(module, arg) for name, arg in TORCH_KINDS[kind][1].items()}
    for name in attributes.keys() & set(_SPATIAL):
        attributes[name] = _pair(attributes[name], in_shape)
    return kind, attributes


def from_call(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> nn.Module:
    """The module that computes the same as `torch.nn.functional.<name>(input, *args, **kwargs)`.

    Raises RefusedError.
    """
    if name not in _CALLS:
        raise unknown(name)
    cls, names = _CALLS[name]
    given = dict(zip(names.split(), args, strict=False)) | kwargs
    if given.pop("training", False) or (name.startswith("dropout") and _always_drops(args, kwargs)):
        raise RefusedError("it drops in evaluation too; pass training=self.training")
    given.pop("inplace", None)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"its arguments are unknown ({error})") from None


def _always_drops(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return len(args) < 2 and "training" not in kwargs


def conv(
    kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, bias: bool
) -> tuple[str, dict[str, Any]]:
    """The layer of a 2-d convolution; numbers are meant for both directions."""
    kernel, stride, dilation = _pair(kernel), _pair(stride), _pair(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            raise RefusedError("padding='same' with an even kernel pads one side more; use numbers")
        padding = tuple(t // 2 for t in total)
    attributes = {"kernel": kernel, "stride": stride, "padding": _pair(padding)}
    return "conv", attributes | {"dilation": dilation, "groups": groups, "bias": bias}


def _conv(module: Any) -> tuple[str, dict[str, Any]]:
    if module.padding_mode != "zeros":
        raise RefusedError(f"padding_mode={module.padding_mode!r} is not zeros")
    return conv(
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.bias is not None,
    )


def _batch_norm(module: Any) -> tuple[str, dict[str, Any]]:
    attributes = {"eps": module.eps, "momentum": module.momentum, "affine": module.affine}
    return "batch_norm", attributes | {"track": module.track_running_stats}


def _group_norm(module: Any) -> tuple[str, dict[str, Any]]:
    attributes = {"groups": module.num_groups, "eps": module.eps, "affine": module.affine}
    return "group_norm", attributes


def _linear(module: Any) -> tuple[str, dict[str, Any]]:
    return "linear", {"bias": module.bias is not None}


_BY_CLASS = {
    nn.Conv2d: _conv,
    StridedPointwise: _conv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.Linear: _linear,
}


def _pair(value: Any, in_shape: tuple[int, ...] = ()) -> tuple[int, ...]:
    """A number for both directions; None (adaptive pools) keeps the size of the input."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) == 1:
        values *= 2
    return tuple(in_shape[1 + i] if v is None else int(v) for i, v in enumerate(values))
