"""Batch-norm statistics of the network as it now is.

Quantised weights shift what a norm sees; statistics gathered with other weights cost more accuracy
than the quantisation itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError
from esnac.runtime import evaluating


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Running means and variances anew, as the mean over batches of inputs; how many norms.

    Only the norms see the network as in training; dropout and quantisers are in eval mode. Norms
    without running statistics are left alone, and a network without any norm gives 0. Raises
    EsnacError when there are norms but no batches.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise EsnacError("No batches to gather batch-norm statistics from.")
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches, each with the same weight
                norm.train()
            for batch in chain([first], rest):
                network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)
