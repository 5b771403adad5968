from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from esnac.surrogate.embedding import GraphEmbedding

LENGTHS = torch.tensor([1, 7, 4, 2, 6])


@pytest.fixture
def x():
    return torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))


def embedding(seed=1, layers=2):
    return GraphEmbedding(3, 4, layers, torch.Generator().manual_seed(seed))


def torch_lstm(ours, layers=2):
    lstm = nn.LSTM(3, 4, layers, bidirectional=True, batch_first=True)
    for theirs, parameter in zip(lstm.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(parameter)
    return lstm


@pytest.mark.parametrize("layers", [1, 4])
def test_initial_weights_are_those_of_torch(layers):
    torch.manual_seed(1)
    lstm = nn.LSTM(3, 4, layers, bidirectional=True)
    for theirs, ours in zip(lstm.parameters(), embedding(1, layers).parameters(), strict=True):
        assert torch.equal(theirs, ours)


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = embedding()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    for a, b in zip(first.parameters(), embedding().parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(embedding(2).parameters()), next(first.parameters()))


def test_equal_lengths_equal_torch_bidirectional_lstm(x):
    ours = embedding()
    mean = torch_lstm(ours)(x)[0].mean(1)
    torch.testing.assert_close(ours(x), mean / mean.norm(dim=1, keepdim=True))
    torch.testing.assert_close(ours(x), ours(x, torch.full((5,), 7)))


def test_padded_lengths_equal_torch_packed_sequences(x):
    ours = embedding()
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    out = pad_packed_sequence(torch_lstm(ours)(packed)[0], batch_first=True)[0]
    mean = out.sum(1) / LENGTHS[:, None]  # torch pads with zeros
    torch.testing.assert_close(ours(x, LENGTHS), mean / mean.norm(dim=1, keepdim=True))


def test_a_batch_equals_its_graphs_one_by_one(x):
    ours = embedding()
    alone = torch.cat([ours(x[i : i + 1, :n]) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(ours(x, LENGTHS), alone, atol=1e-6, rtol=0)


def test_padding_reaches_neither_values_nor_gradients(x):
    ours = embedding()
    results = []
    for fill in (0.0, 1e4, float("nan")):
        valid = torch.arange(7) < LENGTHS[:, None]
        padded = x.where(valid[..., None], fill)
        ours.zero_grad()
        h = ours(padded, LENGTHS)
        h.select(1, 0).sum().backward()
        results.append([h.detach(), *[p.grad.clone() for p in ours.parameters()]])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_rows_have_unit_length(x):
    norms = embedding()(x, LENGTHS).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5))
