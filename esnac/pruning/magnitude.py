"""Which weights stay when the smallest go: exact counts, for one tensor or in blocks (N:M)."""

from __future__ import annotations

import torch
from torch import Tensor

from esnac.errors import SettingsError
from esnac.settings import require

# 0.29 * 100 is 28.999...: what a count lacks in the last digits is not taken for a whole weight.
_ROUNDING = 1e-9


def zeros_of(sparsity: float, numel: int) -> int:
    """The number of zeros in a tensor of `numel` weights: floor(sparsity * numel)."""
    require(0 <= sparsity < 1, "sparsity", "in [0, 1)", sparsity)
    return int(sparsity * numel + _ROUNDING)


def keep_largest(weight: Tensor, sparsity: float) -> Tensor:
    """A mask (bool, True stays) with exactly `zeros_of` weights of least magnitude left out.

    Of equals the first go. What is zero already stays out, even where that is more.
    """
    magnitude = weight.detach().abs().flatten()
    keep = magnitude > 0
    smallest = magnitude.argsort(stable=True)[: zeros_of(sparsity, weight.numel())]
    keep[smallest] = False
    return keep.reshape(weight.shape)


def keep_n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """A mask that keeps the `n` largest of each `m` weights next to each other along dimension 1.

    Dimension 1 are the inputs of linear layers and convolutions (2:4 is what sparse tensor cores
    multiply). Of equals the first stay. Raises SettingsError when m does not divide that dimension.
    """
    require(1 <= n < m, "n", f"in 1..{m - 1}, less than m", n)
    inputs = weight.shape[1] if weight.dim() > 1 else 0
    if inputs == 0 or inputs % m:
        raise SettingsError(
            f"A weight of shape {tuple(weight.shape)} cannot keep {n} of {m}: "
            f"its {inputs} inputs are no multiple of {m}. Leave it out with exclude."
        )
    last = weight.detach().abs().movedim(1, -1)
    blocks = last.reshape(*last.shape[:-1], inputs // m, m)
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.reshape(last.shape).movedim(-1, 1) & (weight.detach() != 0)
