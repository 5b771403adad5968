"""One model trained by a group: shared gradients, and batch norm over the batches of all ranks.

Layers that observe their inputs do so on all ranks, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from esnac.group import ALONE, Group, Observer

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@contextmanager
def joined(model: nn.Module, group: Group) -> Iterator[nn.Module]:
    """What takes the place of `model` in training: gradients become their mean over ranks.

    All ranks start from the weights of rank 0 and end with its buffers. Batch norm takes its
    statistics of the whole batch, so that a training does not depend on the number of ranks; one
    that is frozen (in eval mode) does as always. Observers see all ranks. Alone, it is `model`.
    """
    if group.size == 1:
        yield model
        return
    norms = [layer for layer in model.modules() if isinstance(layer, Norm)]
    for layer in norms:
        layer.forward = partial(_normalise, layer, group)  # type: ignore[method-assign]
    observers = [layer for layer in model.modules() if isinstance(layer, Observer)]
    for observer in observers:
        observer.group = group
    try:
        yield _parallel(model)
    finally:
        for layer in norms:
            del layer.forward
        for observer in observers:
            observer.group = ALONE
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)


def _parallel(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        # Its successor `forward_sync_buffers` is not in all versions.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def _normalise(layer: Norm, group: Group, x: Tensor) -> Tensor:
    """`layer.forward` (x: B x C or B x C x ...) with mean and variance over all ranks' rows."""
    if not layer.training and layer.running_mean is not None:
        return type(layer).forward(layer, x)
    count, mean, var = _statistics(x, group)
    if layer.training and layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked += 1
        momentum = layer.momentum
        rate = 1 / layer.num_batches_tracked.item() if momentum is None else momentum
        layer.running_mean.lerp_(mean, rate)
        layer.running_var.lerp_(var * (count / (count - 1)), rate)
    y: Tensor = _Normalise.apply(x, layer.weight, layer.bias, count, mean, var, layer.eps, group)
    return y


@torch.no_grad()
def _statistics(x: Tensor, group: Group) -> tuple[float, Tensor, Tensor]:
    """How many values each channel has on all ranks, their means and (biased) variances: C each."""
    local, mean = torch.var_mean(x.float(), _others(x), correction=0)
    # In float64, since the mean of squares less the square of the mean cancels.
    mean, local = mean.double(), local.double()
    count = mean.new_full((1,), x.numel() // len(mean))
    sums = group.sum(torch.cat([count, count * mean, count * (local + mean.square())]))
    means, squares = (sums[1:] / sums[0]).chunk(2)
    return sums[0].item(), means.float(), (squares - means.square()).float()


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) weight + bias, where mean and variance depend on all x.

    Backward, with z the normalised x and <> the mean over all ranks' values of a channel
    (Ioffe and Szegedy 2015, section 3):  dx = weight / sqrt(var + eps) (dy - <dy> - z <dy z>)
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        count: float,
        mean: Tensor,
        var: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (var + ctx.eps).rsqrt()
        dy = grads[0].float()
        z = (x.float() - mean.view(shape)) * scale.view(shape)
        along, bias_grad = (dy * z).sum(_others(x)), dy.sum(_others(x))
        mean_along, mean_dy = (ctx.group.sum(torch.cat([along, bias_grad])) / ctx.count).chunk(2)
        dx = dy - mean_dy.view(shape) - z * mean_along.view(shape)
        dx *= (scale if weight is None else scale * weight).view(shape)
        # Weight and bias stay this rank's own: their mean over ranks is taken with all gradients.
        own = (None, None) if weight is None else (along, bias_grad)
        return dx.to(x.dtype), *own, None, None, None, None, None


def _others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]
