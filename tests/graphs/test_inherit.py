import numpy as np
import torch
from torch import nn

from esnac import networks
from esnac.graphs.inherit import inherit
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Linear(4 * 4, 6)
        self.c = nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.norm(self.a(x))).flatten(1))))


def student_of(module, input_size, kept_of_size, selection="leading", tie="dependency"):
    graph = trace(module, input_size)
    weights = teacher_weights(graph, module.state_dict())
    space = Space(graph, tie=tie)
    candidate = space.identity()
    kept = candidate.kept.copy()
    for size, keep in kept_of_size.items():
        kept[:, (space.groups.sizes == size) & ~space.frozen] = keep
    candidate = space.resolve(candidate.removed, kept, candidate.skips)
    moves = space.moves(candidate, 0)
    student = space.apply(moves)
    return graph, inherit(space, student, moves, weights, selection), student


def test_no_moves_inherit_everything():
    module = Plain()
    graph, state, student = student_of(module, (1, 4, 4), {})
    assert student == graph
    for name, tensor in teacher_weights(graph, module.state_dict()).items():
        assert torch.equal(state[name], tensor)


def test_leading_channels_are_kept_through_flatten():
    module = Plain()
    _, state, _ = student_of(module, (1, 4, 4), {4: 2, 6: 3})
    assert torch.equal(state["a.weight"], module.a.weight[:2])
    assert torch.equal(state["norm.running_var"], module.norm.running_var[:2])
    assert torch.equal(state["b.weight"], module.b.weight[:3, : 2 * 4])
    assert torch.equal(state["c.weight"], module.c.weight[:, :3])


def test_important_channels_are_those_with_the_largest_weights():
    module = Plain()
    with torch.no_grad():
        module.a.weight.mul_(torch.tensor([1.0, 100.0, 1.0, 100.0]).reshape(4, 1, 1, 1))
    _, state, _ = student_of(module, (1, 4, 4), {4: 2}, selection="important")
    assert torch.equal(state["a.weight"], module.a.weight[[1, 3]])
    columns = [4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(state["b.weight"], module.b.weight[:, columns])


def test_dropping_dead_channels_changes_nothing():
    """A student without the channels that are zero anyway computes what the teacher computes."""
    torch.manual_seed(0)
    module = networks.build("resnet20", 10, 3).eval()
    graph = trace(module, (3, 16, 16))
    space = Space(graph, tie="dependency")
    for number, layer in enumerate(graph.layers):  # second half of every group is dead
        if layer.kind == "batch_norm":
            norm = module.get_submodule(layer.source)
            dead = space.groups.rank_of_unit[space.groups.makes[number]] % 2 == 1
            with torch.no_grad():
                norm.weight[torch.from_numpy(dead)] = 0
                norm.bias[torch.from_numpy(dead)] = 0
    for number, layer in enumerate(graph.layers):  # and its weights are small, thus unimportant
        if layer.kind == "conv":
            dead = space.groups.rank_of_unit[space.groups.makes[number]] % 2 == 1
            with torch.no_grad():
                module.get_submodule(layer.source).weight[torch.from_numpy(dead)] *= 1e-6
    x = torch.randn(4, 3, 16, 16)
    _, state, student = student_of(module, (3, 16, 16), {16: 8, 32: 16, 64: 32}, "important")
    small = StudentNetwork(student, state).eval()
    assert torch.allclose(small(x), module(x), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.3 * 272_474


def test_grouped_convolutions_keep_equally_many_per_block():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b = nn.Conv2d(8, 8, 1, groups=2)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.b(self.a(x)).mean((2, 3)))

    module = Grouped()
    _, state, student = student_of(module, (3, 2, 2), {8: 4})
    rows = [0, 1, 4, 5]
    assert torch.equal(state["a.weight"], module.a.weight[rows])
    assert torch.equal(state["b.weight"], module.b.weight[rows][:, :2])
    assert StudentNetwork(student, state)(torch.zeros(1, 3, 2, 2)).shape == (1, 2)
    assert np.prod(state["b.weight"].shape) == 8


class Middle(nn.Module):
    """Reads all of 12 channels, and the 4 in the middle once more."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.all = nn.Linear(12, 2)
        self.middle = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.all(x.mean((2, 3))) + self.middle(x[:, 4:8].mean((2, 3)))


def test_a_slice_in_the_middle_takes_the_channels_that_it_takes_in_the_teacher():
    """More of the channels after the slice matter than of those before it."""
    torch.manual_seed(0)
    module = Middle().eval()
    dead = [0, 1, 2, 4, 7, 8]
    with torch.no_grad():
        module.a.weight[dead] = 0
        module.a.bias[dead] = 0
    graph = trace(module, (3, 2, 2))
    space = Space(graph, tie="dependency")
    number = [layer.kind for layer in graph.layers].index("slice")
    before, middle, after = space.groups.group_of_unit[space.groups.reads[number]][[0, 4, 8]]
    kept = space.identity().kept.copy()
    kept[0, [before, middle, after]] = [1, 2, 3]
    none = space.identity()
    moves = space.moves(space.resolve(none.removed, kept, none.skips), 0)
    student = space.apply(moves)
    weights = teacher_weights(graph, module.state_dict())
    small = StudentNetwork(student, inherit(space, student, moves, weights, "important")).eval()
    x = torch.randn(4, 3, 2, 2)
    assert torch.allclose(small(x), module(x), atol=1e-6)
    assert dict(student.layers[number].attributes) == {"start": 1, "stop": 3}
