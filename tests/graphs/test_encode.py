import numpy as np

from esnac import networks
from esnac.graphs.encode import FEATURES, OFFSETS, encode
from esnac.graphs.space import Space
from esnac.graphs.trace import trace


def test_272_features_and_the_first_rows_of_a_resnet():
    graph = trace(networks.build("resnet18", 100, 3), (3, 32, 32))
    rows = encode(graph)
    assert rows.shape == (60, FEATURES) == (60, 272)
    # conv, 3x3, stride 1, padding 1, one group, 3 -> 64 channels, one edge out to the next layer
    stem = np.zeros(272, dtype=np.float32)
    stem[[0, 10, 11, 12, 13, 14, 15]] = [1, 3, 1, 1, 1, 3, 64]
    stem[16 + OFFSETS + 1] = 1
    assert np.array_equal(rows[0], stem)
    norm = np.zeros(272, dtype=np.float32)
    norm[[1, 14, 15]] = [1, 64, 64]
    norm[[16 + 1, 16 + OFFSETS + 1]] = 1
    assert np.array_equal(rows[1], norm)


def test_edges_in_and_out_are_the_same_edges():
    graph = trace(networks.build("shufflenet", 10, 3), (3, 32, 32))
    rows = encode(graph)
    assert rows[:, 16 : 16 + OFFSETS].sum() == rows[:, 16 + OFFSETS :].sum()
    near = [(i, j) for i, j in graph.edges() if j - i < OFFSETS]
    assert rows[:, 16 : 16 + OFFSETS].sum() == len(set(near))


def test_a_removed_layer_is_an_identity_of_zeros():
    graph = trace(networks.build("vgg16", 10, 3), (3, 32, 32))
    space = Space(graph)
    candidate = space.identity()
    candidate.removed[0, space.removable[0]] = True
    row = encode(space.apply(space.moves(candidate, 0)))[space.removable[0]]
    assert row[9] == 1
    assert row[:16].sum() == 1
