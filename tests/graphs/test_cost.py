import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esnac import networks
from esnac.graphs.cost import candidate_bytes, candidate_costs, cost
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings


@pytest.mark.parametrize(("name", "macs"), [("resnet18", 555_468_800), ("vgg19", 398_182_400)])
def test_known_costs_at_100_classes(name, macs):
    """MACs as torch's own counter gives them, 555.469 M and 398.182 M."""
    network = networks.build(name, 100, 3)
    spent = cost(trace(network, (3, 32, 32)))
    assert spent.params == sum(p.numel() for p in network.parameters())
    assert abs(spent.macs - macs) < 1000


@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "mobilenetv2"])
def test_macs_equal_torch_s_counter(name):
    network = networks.build(name, 10, 3).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert 2 * cost(trace(network, (3, 32, 32))).macs == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet18", "vgg19"])
def test_half_the_channels_as_torch_pruning_counts(name):
    pruning = pytest.importorskip("torch_pruning")
    network = networks.build(name, 100, 3)
    graph = trace(network, (3, 32, 32))
    space = Space(graph, tie="dependency")
    teacher = space.identity()
    kept = teacher.kept.copy()
    kept[:, ~space.frozen] //= 2
    candidate = space.resolve(teacher.removed, kept, teacher.skips)
    predicted = int(candidate_costs(space, candidate)[0][0])
    student = StudentNetwork(space.apply(space.moves(candidate, 0)))
    assert sum(p.numel() for p in student.parameters()) == predicted

    head = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    pruner = pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(1, 3, 32, 32),
        importance=pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[head],
    )
    pruner.step()
    assert sum(p.numel() for p in network.parameters()) == predicted


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_bytes_equal_those_of_built_students(name):
    """Layer removals, shrinking and skips at random; the tensors of the students hold no values."""
    with torch.device("meta"):
        graph = trace(networks.build(name, 10, 3), (3, 16, 16))
        space = Space(graph, tie="dependency")
        drawn = sample(space, SpaceSettings(), 4, np.random.default_rng(2))
        sizes = candidate_bytes(space, drawn)
        assert sizes.dtype == np.int64
        for row, size in enumerate(sizes):
            student = space.apply(space.moves(drawn, row))
            tensors = StudentNetwork(student).state_dict().values()
            assert size == cost(student).bytes == sum(t.numel() * t.element_size() for t in tensors)


def test_bytes_of_norms_with_and_without_statistics():
    """Convolution 3 x 4 (48 bytes); 4 x 4 values and a counter; 2 x 4 values; 2 x 4; nothing."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.Flatten(),
    )
    assert cost(trace(network, (3, 1, 1))).bytes == 48 + (64 + 8) + 32 + 32
