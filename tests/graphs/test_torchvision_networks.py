"""torchvision's networks: equal bit for bit as a graph, and their students run as predicted."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from esnac.data.vision import torchvision
from esnac.graphs.cost import candidate_costs, cost
from esnac.graphs.inherit import inherit
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings

NAMES = ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121", "efficientnet_b0"]


@pytest.mark.parametrize("name", NAMES)
def test_as_a_graph_and_as_students(name):
    torchvision()
    from torchvision import models

    torch.manual_seed(0)
    network = models.get_model(name, weights=None, num_classes=10).eval()
    size = (3, 64, 64)
    graph = trace(network, size)
    weights = teacher_weights(graph, network.state_dict())
    twin = StudentNetwork(graph, weights).eval()
    x = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(twin(x), network(x))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x[:1])
    assert counter.get_total_flops() == 2 * cost(graph).macs
    assert sum(p.numel() for p in network.parameters()) == cost(graph).params

    for tie in ("count", "dependency"):
        space = Space(graph, tie=tie)
        drawn = sample(space, SpaceSettings(), 20, np.random.default_rng(0))
        params, macs = candidate_costs(space, drawn)
        for row in range(len(drawn)):
            moves = space.moves(drawn, row)
            student = space.apply(moves)
            built = StudentNetwork(student, inherit(space, student, moves, weights))
            assert sum(p.numel() for p in built.parameters()) == params[row]
            with FlopCounterMode(display=False) as counter:
                y = built.train()(x)
            assert counter.get_total_flops() == 2 * len(x) * macs[row]
            y.sum().backward()
