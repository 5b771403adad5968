"""Variation: every child is a student that can be built, of the size that was predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esnac import networks
from esnac.graphs.cost import candidate_costs
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Candidates, Space, joined
from esnac.graphs.trace import trace
from esnac.search.sampler import sample
from esnac.search.variation import cross, mutate, shrink_until
from esnac.search_spaces import SpaceSettings

SETTINGS = SpaceSettings()
TIES = pytest.mark.parametrize("tie", ["count", "dependency"])


class Mixed(nn.Module):
    """A residual block, a depthwise convolution, a concat and a split with its shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.block(x))
        x = self.left(F.relu(self.depthwise(x)))
        x = torch.cat([x, F.relu(self.right(x))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


def mixed(tie: str = "dependency") -> Space:
    return Space(trace(Mixed(), (1, 8, 8)), tie=tie)


def registered(name: str, tie: str = "dependency", **changed: object) -> Space:
    return Space(trace(networks.build(name, 10), (3, 8, 8)), tie=tie, **changed)


def families(space: Space, count: int, seed: int = 0) -> dict[str, Candidates]:
    """Random candidates, and children of children of them."""
    rng = np.random.default_rng(seed)
    drawn = sample(space, SETTINGS, count, rng)
    mutated = mutate(space, SETTINGS, mutate(space, SETTINGS, drawn, rng), rng)
    crossed = cross(space, mutated, drawn.select(rng.permutation(count)), rng)
    return {"random": drawn, "mutated": mutated, "crossed": crossed}


def build_and_compare(space: Space, candidates: Candidates) -> None:
    """Each student runs forward and backward and costs what was predicted.

    Its parameters are counted on the modules, its MACs by hooks on convolutions and linear layers.
    """
    params, macs = candidate_costs(space, candidates)
    x = torch.randn(2, *space.graph.input_shape, generator=torch.Generator().manual_seed(0))
    spent = 0

    def count(module: nn.Module, _: object, y: torch.Tensor) -> None:
        nonlocal spent
        spent += y[0].numel() * module.weight[0].numel()

    for row in range(len(candidates)):
        student = StudentNetwork(space.apply(space.moves(candidates, row)))
        assert sum(p.numel() for p in student.parameters()) == params[row]
        for module in student.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        spent = 0
        y = student(x)
        assert spent == macs[row]
        y.square().sum().backward()
        assert all(p.grad is not None for p in student.parameters())


@TIES
def test_1000_random_1000_mutated_and_500_crossed_students_cost_what_was_predicted(
    tie: str,
) -> None:
    """Of either tie half of them."""
    space = mixed(tie)
    for name, candidates in families(space, 500).items():
        some = candidates.select(np.arange(250 if name == "crossed" else 500))
        assert len(set(some.keys())) > 0.9 * len(some)
        build_and_compare(space, some)


@TIES
@pytest.mark.parametrize("name", ["resnet20", "shufflenet", "mobilenetv2"])
def test_children_in_registered_networks_cost_what_was_predicted(name: str, tie: str) -> None:
    space = registered(name, tie)
    for candidates in families(space, 6).values():
        build_and_compare(space, candidates)


@TIES
@pytest.mark.parametrize("name", ["mixed", "resnet20", "shufflenet"])
def test_children_are_consistent(name: str, tie: str) -> None:
    """Plain data and back; equal widths on both sides of a removed layer and of a skip."""
    space = mixed(tie) if name == "mixed" else registered(name, tie)
    for candidates in families(space, 100).values():
        listed = [space.moves(candidates, row) for row in range(len(candidates))]
        assert space.candidates(listed).keys() == candidates.keys()
        again = space.resolve(candidates.removed, candidates.kept, candidates.skips)
        assert again.keys() == candidates.keys()
        reads, makes = space.widths(candidates.kept)
        assert (reads == makes)[candidates.removed].all()
        row, skip = np.nonzero(candidates.skips)
        start, end = space.skips[skip].T
        assert len(row)
        assert (makes[row, start] == reads[row, end]).all()
        assert not candidates.removed[row, end].any()
        assert (candidates.kept >= 1).all()
        assert (candidates.kept <= space.groups.sizes).all()
        assert (candidates.kept % space.divisors == 0).all()
        assert (candidates.kept[:, space.frozen] == space.groups.sizes[space.frozen]).all()


@TIES
def test_mutation_changes_most_parents_and_little_of_each(tie: str) -> None:
    space = registered("resnet20", tie)
    parents = sample(space, SETTINGS, 400, np.random.default_rng(0))
    children = mutate(space, SETTINGS, parents, np.random.default_rng(1))
    pairs = list(zip(parents.keys(), children.keys(), strict=True))
    assert np.mean([parent != child for parent, child in pairs]) > 0.6
    flipped = (parents.removed != children.removed).sum(axis=1)
    unlike = (parents.removed != parents.removed[::-1]).sum(axis=1)
    assert 0 < flipped.mean() < 0.2 * unlike.mean()


def test_mutation_leaves_its_parents_as_they_are() -> None:
    space = mixed()
    parents = sample(space, SETTINGS, 50, np.random.default_rng(0))
    before = parents.keys()
    mutate(space, SETTINGS, parents, np.random.default_rng(1))
    cross(space, parents, parents.select(np.arange(50)[::-1]), np.random.default_rng(1))
    assert parents.keys() == before


def test_the_generator_alone_decides() -> None:
    space = mixed()
    a, b, c = (families(space, 20, seed) for seed in (3, 3, 4))
    for name in a:
        assert a[name].keys() == b[name].keys() != c[name].keys()


@pytest.mark.parametrize("move", ["remove", "shrink", "skip"])
def test_mutation_makes_allowed_moves_only(move: str) -> None:
    space = mixed()
    settings = SpaceSettings(moves=(move,))
    rng = np.random.default_rng(0)
    children = joined([space.identity()] * 200)
    for _ in range(3):
        children = mutate(space, settings, children, rng)
    found = {
        "remove": children.removed.any(),
        "shrink": (children.kept != space.groups.sizes).any(),
        "skip": children.skips.any(),
    }
    assert found == {name: name == move for name in found}


def test_without_moves_a_child_is_its_parent() -> None:
    space = mixed()
    settings = SpaceSettings(moves=())
    teacher = space.identity()
    assert mutate(space, settings, teacher, np.random.default_rng(0)).keys() == teacher.keys()
    assert not len(shrink_until(space, settings, teacher, lambda c: np.zeros(len(c), bool)))


def extremes(space: Space) -> tuple[Candidates, Candidates]:
    """The teacher with its least channels, and without all layers that can go but with skips."""
    teacher = space.identity()
    least = space.kept_at(np.zeros((1, len(space.groups))))
    every = teacher.removed.copy()
    every[0, space.removable] = True
    narrow = space.resolve(teacher.removed, least, teacher.skips)
    return narrow, space.resolve(every, teacher.kept, ~teacher.skips)


def test_edits_come_back() -> None:
    """Layers return, channels grow and skips go: none is a one-way street."""
    space = mixed()
    narrow, bare = extremes(space)
    rng = np.random.default_rng(0)
    wider = mutate(space, SETTINGS, joined([narrow] * 500), rng)
    assert (wider.kept > narrow.kept).any(axis=0)[~space.frozen].all()
    deeper = mutate(space, SETTINGS, joined([bare] * 500), rng)
    assert (deeper.removed.sum(axis=1) < bare.removed.sum()).mean() > 0.2
    assert bare.skips.any()
    assert (deeper.skips.sum(axis=1) < bare.skips.sum()).any()


def test_whole_blocks_go_and_return() -> None:
    """Of a ResNet-20 without any move a mutation takes a residual block's branch in one edit."""
    space = registered("resnet20")
    settings = SpaceSettings(moves=("remove",))
    branch = max(space.blocks, key=lambda mask: mask.sum())
    assert branch.sum() >= 4
    gone = mutate(space, settings, joined([space.identity()] * 500), np.random.default_rng(0))
    assert (gone.removed & branch == branch).all(axis=1).any()
    back = space.resolve(branch[None], space.identity().kept, space.identity().skips)
    children = mutate(space, settings, joined([back] * 500), np.random.default_rng(0))
    assert (~(children.removed & branch).any(axis=1)).any()


def test_protected_layers_minimum_and_multiple_hold_for_children() -> None:
    space = registered("resnet20", protected=["*.0.conv1"], multiple=4, minimum=6)
    held = [
        number
        for number, layer in enumerate(space.graph.layers)
        if (layer.source or "").endswith(".0.conv1")
    ]
    assert len(held) == 3
    for candidates in families(space, 200).values():
        _, makes = space.widths(candidates.kept)
        assert not candidates.removed[:, held].any()
        assert (makes[:, held] == [16, 32, 64]).all()
        free = candidates.kept[:, ~space.frozen]
        assert (free % 4 == 0).all()
        assert free.min() == 8, "the multiple of 4 above the minimum of 6"


def test_widths_stay_near_their_parents_beside_protected_layers() -> None:
    """Most mutations of a quarter of the width multiply it by 0.6 to 1.6 (exp(0.4 n), n normal).

    From the full width, as the protected layer's is, they would come to four times as much.
    """
    space = registered("resnet20", protected=["conv1"])
    quarter = space.kept_at(np.full((1, len(space.groups.sizes)), 0.25))
    plain = space.identity()
    parent = space.resolve(plain.removed, quarter, plain.skips)
    settings = SpaceSettings(moves=("shrink",))
    children = mutate(space, settings, joined([parent] * 1000), np.random.default_rng(0))
    sixteen = np.flatnonzero((space.groups.sizes == 16) & ~space.frozen)[0]
    changed = children.kept[:, sixteen] != parent.kept[0, sixteen]
    assert changed.sum() > 100
    assert np.median(children.kept[changed, sixteen]) <= 8


def test_a_cut_divides_layers_and_channels() -> None:
    """The teacher crossed with its smallest student: whole before the cut, bare behind it."""
    space = registered("resnet20")
    narrow, bare = extremes(space)
    whole = joined([space.identity()] * 300)
    layers = cross(space, whole, joined([bare] * 300), np.random.default_rng(0))
    gone = layers.removed[:, space.removable]
    assert (np.diff(gone.astype(int), axis=1) >= 0).all()
    assert len(np.unique(gone.sum(axis=1))) > len(space.removable) / 2
    channels = cross(space, whole, joined([narrow] * 300), np.random.default_rng(0))
    order = np.argsort(space.set_depth[space.tied_set], kind="stable")
    free = order[~space.frozen[order]]
    full = channels.kept[:, free] == space.groups.sizes[free]
    assert (np.diff(full.astype(int), axis=1) <= 0).all()
    assert full.any()
    assert not full.all()
    assert (full | (channels.kept[:, free] == narrow.kept[:, free])).all()


@pytest.mark.parametrize("multiple", [1, 8])
def test_shrinking_ends_where_a_limit_holds(multiple: int) -> None:
    """The least widths are reached if need be, so no candidate is lost that could be kept."""
    space = registered("resnet20", multiple=multiple)
    narrow = SpaceSettings(moves=("shrink", "skip"))
    drawn = sample(space, SETTINGS, 200, np.random.default_rng(0))
    least = space.kept_at(np.zeros((len(drawn), len(space.groups))))
    smallest = candidate_costs(space, space.resolve(drawn.removed, least, drawn.skips))[0]
    before = candidate_costs(space, drawn)[0]
    for limit in (int(np.quantile(smallest, 0.5)), int(np.quantile(before, 0.3))):
        found = shrink_until(
            space, narrow, drawn, lambda c, most=limit: candidate_costs(space, c)[0] <= most
        )
        spent = candidate_costs(space, found)[0]
        assert (spent <= limit).all()
        assert len(found) == (smallest <= limit).sum()
        kept = set(found.keys())
        inside = drawn.select(np.flatnonzero(before <= limit))
        assert kept >= set(inside.keys()), "what is allowed stays as it is"


def test_layers_go_where_the_least_widths_are_not_enough() -> None:
    """The last ones first, so a limit below that of the narrowest student is reached as well."""
    space = registered("resnet20")
    wide = joined([space.identity()] * 3)
    least = space.kept_at(np.zeros((3, len(space.groups))))
    narrowest = candidate_costs(space, space.resolve(wide.removed, least, wide.skips))[0][0]
    limit = int(0.8 * narrowest)
    found = shrink_until(space, SETTINGS, wide, lambda c: candidate_costs(space, c)[0] <= limit)
    assert len(found) == 3
    assert (candidate_costs(space, found)[0] <= limit).all()
    assert 0 < found.removed[0].sum() < len(space.removable)
    gone = found.removed[0, space.removable]
    assert (np.diff(gone.astype(int)) >= 0).all()


def test_shrinking_does_not_overshoot() -> None:
    """Widths fall by a fifth at a time, so most of what a limit leaves is used."""
    space = registered("resnet20")
    wide = joined([space.identity()] * 5)
    limit = candidate_costs(space, wide)[0][0] // 3
    found = shrink_until(space, SETTINGS, wide, lambda c: candidate_costs(space, c)[0] <= limit)
    assert len(found) == 5
    assert (candidate_costs(space, found)[0] > 0.5 * limit).all()


def test_nothing_allowed_leaves_nothing() -> None:
    space = mixed()
    drawn = sample(space, SETTINGS, 20, np.random.default_rng(0))
    found = shrink_until(space, SETTINGS, drawn, lambda c: np.zeros(len(c), dtype=bool))
    assert len(found) == 0
    assert found.kept.shape == (0, len(space.groups))
    everything = shrink_until(space, SETTINGS, drawn, lambda c: np.ones(len(c), dtype=bool))
    assert everything.keys() == drawn.keys()
    assert len(shrink_until(space, SETTINGS, found, lambda c: np.ones(len(c), dtype=bool))) == 0
