from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esnac.errors import SettingsError
from esnac.pruning.magnitude import keep_largest, keep_n_of_m, zeros_of
from tests.pruning.conftest import sparsity_of


def test_the_smallest_go() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.5], [-2.0, 4.0, 0.1]])
    expected = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.equal(keep_largest(weight, 0.5), expected)


@given(st.floats(0, 0.999), st.integers(1, 300), st.integers(0, 99))
def test_counts_are_exact(sparsity: float, numel: int, seed: int) -> None:
    weight = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    zeros = (~keep_largest(weight, sparsity)).sum().item()
    assert zeros == zeros_of(sparsity, numel)
    assert abs(zeros / numel - sparsity) <= 1 / numel + 1e-9


def test_counts_of_equal_weights_are_exact_too() -> None:
    assert keep_largest(torch.ones(10), 0.3).sum() == 7
    assert zeros_of(0.29, 100) == 29, "0.29 * 100 is 28.999..."


def test_zeros_stay_zero() -> None:
    weight = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert keep_largest(weight, 0.25).tolist() == [False, False, False, True]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsities_out_of_range(sparsity: float) -> None:
    with pytest.raises(SettingsError, match=r"sparsity must be in \[0, 1\)"):
        keep_largest(torch.ones(4), sparsity)


def test_two_of_four() -> None:
    weight = torch.tensor([[4.0, 1.0, -3.0, 2.0, 0.1, 0.4, -0.3, 0.2]])
    assert keep_n_of_m(weight, 2, 4).tolist() == [
        [True, False, True, False] * 1 + [False, True, True, False]
    ]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (3, 4)])
def test_n_of_m_lies_along_the_inputs_of_a_convolution(n: int, m: int) -> None:
    weight = torch.randn(6, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    keep = keep_n_of_m(weight, n, m)
    assert (keep.unflatten(1, (-1, m)).sum(2) == n).all()
    assert sparsity_of(weight * keep) == pytest.approx(1 - n / m)


@pytest.mark.parametrize(
    ("shape", "n", "m", "message"),
    [
        ((4, 6), 2, 4, "6 inputs are no multiple of 4"),
        ((8,), 2, 4, "0 inputs"),
        ((4, 8), 4, 4, "n must be in 1..3"),
        ((4, 8), 0, 4, "n must be in 1..3"),
    ],
)
def test_blocks_that_do_not_fit(shape: tuple[int, ...], n: int, m: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        keep_n_of_m(torch.ones(shape), n, m)
