"""A user's own network by its import path, `package.module:callable`."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from typing import Any

from torch import nn

from esnac.errors import EsnacError

PATTERN = "package.module:callable"


def is_custom(name: str) -> bool:
    return ":" in name


def build(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """The module that `callable(num_classes=..., in_channels=...)` returns.

    A callable that does not accept `in_channels` is called with `num_classes` alone. Modules of the
    current directory can be imported; an installed one of the same name wins. Raises EsnacError for
    an import or a call that fails, and for a result that is no nn.Module.
    """
    target = _load(name)
    if not callable(target):
        raise EsnacError(
            f"Network {name!r}: {target!r} is a {type(target).__name__}, not a callable."
        )
    try:
        network = _call(target, num_classes, in_channels)
    except Exception as error:
        raise EsnacError(
            f"Network {name!r} failed when called with num_classes={num_classes}, "
            f"in_channels={in_channels}: {_describe(error)}."
        ) from error
    if not isinstance(network, nn.Module):
        raise EsnacError(
            f"Network {name!r} must return a torch.nn.Module; it returned a "
            f"{type(network).__name__}."
        )
    return network


def _load(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise EsnacError(f"A network of your own is named {PATTERN}; got {name!r}.")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        # Last and for good: a file here must not shadow an installed package, and the user's
        # module may import its neighbours only when it is called.
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise EsnacError(
            f"Network {name!r}: importing {module_name} failed, {_describe(error)}. Modules are "
            f"looked for among the installed packages, on PYTHONPATH and in {here}."
        ) from error
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError:
        raise EsnacError(f"Network {name!r}: module {module_name} has no {attribute!r}.") from None


def _call(target: Any, num_classes: int, in_channels: int) -> Any:
    try:
        return target(num_classes=num_classes, in_channels=in_channels)
    except TypeError as error:
        # Asking instead of reading the signature: torchvision's `resnet18(**kwargs)` accepts
        # anything by its signature and refuses `in_channels` further down.
        if "unexpected keyword argument 'in_channels'" not in str(error):
            raise
    return target(num_classes=num_classes)


def _describe(error: Exception) -> str:
    """Type and message on one line, without the full stop at the end."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
