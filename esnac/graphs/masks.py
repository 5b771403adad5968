"""Weights that stay zero: masks on the parameters of a network, as parametrizations.

The optimizer moves what lies under a mask as it likes (momentum, weight decay); the network never
sees it. A mask added after a quantizer also keeps its zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac.errors import EsnacError


class Mask(nn.Module):
    """Zero where `keep` (bool, shaped like the weight) is False; no gradient flows there."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep.bool())

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.keep, weight, weight.new_zeros(()))


def masks_of_zeros(network: nn.Module) -> dict[str, Tensor]:
    """Where the weights of two and more dimensions that hold exact zeros are not zero, by name."""
    found = {}
    for name, weight in effective_weights(network).items():
        keep = weight != 0
        if weight.dim() >= 2 and not keep.all():
            found[name] = keep
    return found


def attach_masks(network: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Puts a mask on each named weight, or another in the place of the one it has.

    Raises EsnacError for a name that is no parameter of the network, or another shape.
    """
    weights = effective_weights(network)
    for name, keep in masks.items():
        if name not in weights:
            raise EsnacError(f"No weight {name!r} to mask.")
        if weights[name].shape != keep.shape:
            shapes = f"{tuple(keep.shape)}, its weight {tuple(weights[name].shape)}"
            raise EsnacError(f"The mask of {name} is {shapes}.")
        module, tensor = owner_of(network, name)
        mask = mask_of(network, name)
        if mask is None:
            parametrize.register_parametrization(module, tensor, Mask(keep))
        else:
            mask.keep.copy_(keep)


def mask_of(network: nn.Module, name: str) -> Mask | None:
    """The mask on the named weight, if it has one."""
    module, tensor = owner_of(network, name)
    if not parametrize.is_parametrized(module, tensor):
        return None
    chain = module.parametrizations[tensor]  # type: ignore[index]
    return next((part for part in chain if isinstance(part, Mask)), None)


def effective_weights(network: nn.Module) -> dict[str, Tensor]:
    """All parameters by name as the network uses them, after their parametrizations; detached."""
    found = {}
    for path, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList) or ".parametrizations." in path:
            continue
        prefix = f"{path}." if path else ""
        for tensor, parameter in module.named_parameters(recurse=False):
            found[prefix + tensor] = parameter.detach()
        if parametrize.is_parametrized(module):
            for tensor in module.parametrizations:
                found[prefix + tensor] = getattr(module, tensor).detach()
    return found


def owner_of(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the named weight, and the weight's name there."""
    path, _, tensor = name.rpartition(".")
    return network.get_submodule(path), tensor
