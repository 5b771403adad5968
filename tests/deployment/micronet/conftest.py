from __future__ import annotations

import pytest
from torch import nn

from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.trace import trace


@pytest.fixture
def example() -> ArchGraph:
    """Convolution 3 -> 4 with norm and ReLU on 8x8, global pool, linear layer 4 -> 10."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    return trace(network, (3, 8, 8))
