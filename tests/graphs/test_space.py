import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from esnac import networks
from esnac.errors import SettingsError
from esnac.graphs.cost import candidate_costs, cost
from esnac.graphs.encode import Encoder, encode
from esnac.graphs.inherit import inherit
from esnac.graphs.moves import Moves
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search_spaces import SpaceSettings


def traced(name, classes=10, size=(3, 32, 32)):
    return trace(networks.build(name, classes, size[0]), size)


@pytest.fixture(scope="module")
def resnet18():
    return traced("resnet18", 100)


@pytest.mark.parametrize(
    ("name", "removable", "pairs"), [("resnet18", 50, 463), ("resnet34", 98, 1603)]
)
def test_published_numbers_of_moves(name, removable, pairs):
    """The published count of pairs includes existing edges, but for the two around flatten."""
    graph = traced(name, 100)
    space = Space(graph)
    assert len(space.removable) == removable
    flatten = next(i for i, layer in enumerate(graph.layers) if layer.kind == "flatten")
    assert len(space.skips) + sum(flatten not in edge for edge in graph.edges()) == pairs


def test_shrinking_rounds_down_and_keeps_one(resnet18):
    space = Space(resnet18)
    shrink = np.array([[0.0] * space.num_tied, [0.999] * space.num_tied, [0.5] * space.num_tied])
    kept = space.kept(shrink)
    free = ~space.frozen
    assert (kept[0] == space.groups.sizes).all()
    assert (kept[1][free] == 1).sum() == (free & (space.groups.sizes < 1000)).sum()
    assert (kept[2][free] * 2 == space.groups.sizes[free]).all()
    assert (kept[:, ~free] == space.groups.sizes[~free]).all()


def test_tied_by_count_shrinks_equal_sizes_alike(resnet18):
    space = Space(resnet18, tie="count")
    drawn = sample(space, SpaceSettings(), 20, np.random.default_rng(0))
    for size in (64, 128, 256, 512):
        same = drawn.kept[:, (space.groups.sizes == size) & ~space.frozen]
        assert (same == same[:, :1]).all()


def test_removal_by_dependency_joins_the_groups_around_the_layer(resnet18):
    space = Space(resnet18, tie="dependency")
    layer = next(
        i for i in space.removable
        if resnet18.layers[i].kind == "conv"
        and not np.array_equal(space.groups.reads[i], space.groups.makes[i])
    )  # fmt: skip
    rng = np.random.default_rng(0)
    removed = np.zeros((1, len(resnet18)), dtype=bool)
    removed[0, layer] = True
    kept = space.kept(rng.random((1, space.num_tied)))
    candidate = space.resolve(removed, kept, np.zeros((1, len(space.skips)), dtype=bool))
    reads, makes = space.widths(candidate.kept)
    assert reads[0, layer] == makes[0, layer]
    graph = space.apply(space.moves(candidate, 0))
    assert graph.layers[layer].kind == "identity"
    StudentNetwork(graph)(torch.zeros(2, 3, 32, 32))


def test_multiples_and_minimum(resnet18):
    space = Space(resnet18, multiple=8, minimum=10)
    kept = space.kept(np.random.default_rng(0).random((50, space.num_tied)))[:, ~space.frozen]
    assert (kept % 8 == 0).all()
    assert kept.min() == 16


def test_a_multiple_holds_where_it_divides_the_channels():
    """ResNet-20 has groups of 16, 32 and 64; 32 leaves those of 16 free."""
    space = Space(traced("resnet20"), multiple=32)
    free = ~space.frozen
    sixteen = free & (space.groups.sizes == 16)
    assert (space.steps[sixteen] == 1).all()
    assert (space.steps[free & ~sixteen] == 32).all()


@pytest.mark.parametrize(
    ("multiple", "protected", "counts"),
    [(24, (), "16, 32, 64"), (3, (), "16, 32, 64"), (32, ("stages.[12].*",), "16"),
     (2, ("*",), "none")],
)  # fmt: skip
def test_a_multiple_that_no_channels_can_keep_is_an_error(multiple, protected, counts):
    """The protected and the three input channels do not count, and nor do the ten classes."""
    graph = traced("resnet20")
    with pytest.raises(SettingsError, match=rf"space\.multiple = {multiple} .*shrink: {counts}\."):
        Space(graph, multiple=multiple, protected=protected)
    Space(graph, multiple=1, protected=protected)


def test_protected_layers_keep_place_and_width(resnet18):
    space = Space(resnet18, protected=["stages.1.0.conv1"])
    number = next(
        i for i, layer in enumerate(resnet18.layers) if layer.source == "stages.1.0.conv1"
    )
    drawn = sample(space, SpaceSettings(), 30, np.random.default_rng(0))
    _, makes = space.widths(drawn.kept)
    assert not drawn.removed[:, number].any()
    assert (makes[:, number] == 128).all()


def test_a_tied_set_is_led_by_a_group_that_can_be_shrunk():
    """conv1 and the stream of the first stage have 16 channels, as do convolutions in it."""
    free, held = (Space(traced("resnet20"), protected=names) for names in ((), ["conv1"]))
    sixteen = free.groups.sizes == 16
    (tied,) = np.unique(free.tied_set[sixteen])
    assert free.first_of_set[tied] == np.flatnonzero(sixteen)[0]
    assert held.frozen[np.flatnonzero(sixteen)[0]]
    assert held.first_of_set[tied] == np.flatnonzero(sixteen & ~held.frozen)[0]
    assert (held.tied_set[held.first_of_set] == np.arange(held.num_tied)).all()


def test_a_protected_pattern_that_matches_nothing_is_an_error(resnet18):
    with pytest.raises(SettingsError, match="Did you mean 'conv1'"):
        Space(resnet18, protected=["convv1"])


def test_moves_and_candidates_are_inverse(resnet18):
    space = Space(resnet18)
    drawn = sample(space, SpaceSettings(), 10, np.random.default_rng(0))
    listed = [Moves.from_plain(space.moves(drawn, row).to_plain()) for row in range(10)]
    back = space.candidates(listed)
    assert back.keys() == drawn.keys()
    assert len(set(listed)) == 10


def test_moves_of_another_network_are_refused(resnet18):
    with pytest.raises(SettingsError, match="another network"):
        Space(resnet18).candidates([Moves((), (1, 2, 3), ())])


def test_skips_into_removed_layers_vanish(resnet18):
    space = Space(resnet18)
    removed = np.zeros((1, len(resnet18)), dtype=bool)
    removed[0, space.removable] = True
    skips = np.ones((1, len(space.skips)), dtype=bool)
    candidate = space.resolve(removed, space.identity().kept, skips)
    assert not candidate.removed[0, space.skips[candidate.skips[0], 1]].any()


@pytest.mark.parametrize("tie", ["count", "dependency"])
@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_random_candidates_run_as_predicted(name, tie, device):
    """Candidates of every registered network run forward and backward and cost what was said.

    20 of each; 4 of the deep ones, which take as long as all others together.
    """
    network = networks.build(name, 10, 3)
    graph = trace(network, (3, 16, 16))
    weights = teacher_weights(graph, network.state_dict())
    space = Space(graph, tie=tie)
    count = 20 if len(graph) < 180 else 4
    drawn = sample(space, SpaceSettings(), count, np.random.default_rng(1))
    params, macs = candidate_costs(space, drawn)
    rows = Encoder(space).encode(drawn)
    x = torch.randn(2, 3, 16, 16, device=device)
    for row in range(len(drawn)):
        moves = space.moves(drawn, row)
        student = space.apply(moves)
        selection = ("leading", "important")[row % 2]
        built = StudentNetwork(student, inherit(space, student, moves, weights, selection))
        assert sum(p.numel() for p in built.parameters()) == params[row] == cost(student).params
        assert cost(student).macs == macs[row]
        assert np.array_equal(encode(student), rows[row])
        built.to(device).train()
        with FlopCounterMode(display=False) as counter:
            y = built(x)
        assert counter.get_total_flops() == 2 * len(x) * macs[row]
        y.sum().backward()
