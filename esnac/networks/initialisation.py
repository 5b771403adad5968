"""He initialisation, shared by the registered networks."""

from __future__ import annotations

from torch import nn


def initialise(network: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / fan_in), their biases 0 (He et al. 2015, arXiv 1502.01852, eq. 10).

    fan_in = kernel area * in_channels / groups: it stays right for grouped and depthwise
    convolutions, where torch's fan_out is too large by the number of groups. Batch norms (scale 1,
    shift 0) and linear layers keep torch's defaults.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
