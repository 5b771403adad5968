"""Architectures as points on a sphere: a bidirectional LSTM over their layers, outputs averaged.

Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression",
ICLR 2019 (arXiv 1902.00383).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class GraphEmbedding(nn.Module):
    """Bidirectional LSTM of `layers` layers with `hidden` units per direction.

    The weights are drawn from `generator` (on the CPU) alone, uniform in +-1/sqrt(hidden) and in
    the order of `nn.LSTM`, so a generator with seed s gives what `nn.LSTM` gives after
    `torch.manual_seed(s)`. The global random state is neither read nor changed.
    """

    def __init__(
        self, features: int, hidden: int, layers: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.directions = nn.ModuleList()
        for layer in range(layers):
            width = features if layer == 0 else 2 * hidden
            for _ in ("forward", "backward"):
                lstm = nn.LSTM(width, hidden, batch_first=True, device="meta")
                self.directions.append(lstm.to_empty(device="cpu"))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings (n x 2 hidden, rows of unit length) of `x` (n x L x F).

        `lengths` (n, each in 1..L) counts the layers of every graph; rows behind them are padding
        and have no influence. None: all graphs have L layers.
        """
        if lengths is not None:
            lengths = lengths.to(x.device)
            valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            x = x.where(valid[..., None], 0)  # NaN in padding would reach the gradient
        for there, back in zip(self.directions[::2], self.directions[1::2], strict=True):
            # A dense batch: packed sequences make training 3 to 9 times slower. Padding comes last
            # for either direction, so it cannot reach the states of the layers before it.
            backward = _reverse(back(_reverse(x, lengths))[0], lengths)
            x = torch.cat([there(x)[0], backward], dim=2)
        if lengths is None:
            return normalize(x.mean(1), dim=1)
        total = x.where(valid[..., None], 0).sum(1)
        return normalize(total / lengths[:, None], dim=1)


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Every sequence of `x` (n x L x F) from its last layer to its first; padding stays last."""
    if lengths is None:
        return x.flip(1)
    position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    mirrored = lengths[:, None] - 1 - position
    return x.gather(1, mirrored.where(mirrored >= 0, position)[..., None].expand_as(x))
