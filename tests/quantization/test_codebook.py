from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.codebook import (
    encode_points,
    nearest_points,
    scaled_values,
    start_points,
)
from esnac.quantization.codes import decode
from esnac.quantization.uniform import grid, quantize_uniform


def weights(count: int = 5000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_the_nearest_point_by_brute_force() -> None:
    u, points = torch.rand(2000), torch.rand(7)
    found = points[nearest_points(u, points)]
    assert torch.equal((u - found).abs(), (u[:, None] - points).abs().amin(1))


def test_half_way_goes_up() -> None:
    points = torch.tensor([0.0, 0.5, 1.0])
    assert nearest_points(torch.tensor([0.25, 0.75, -1.0, 2.0]), points).tolist() == [1, 2, 0, 2]


def test_the_order_of_points_changes_nothing() -> None:
    w, points = weights(), torch.tensor([0.1, 0.4, 0.6, 0.95])
    shuffled = points[[2, 0, 3, 1]]
    u = scaled_values(w, 256)
    assert torch.equal(shuffled[nearest_points(u, shuffled)], points[nearest_points(u, points)])
    first, second = encode_points(w, points, 256), encode_points(w, shuffled, 256)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(decode(first), decode(second))


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
@pytest.mark.parametrize("rows", ["tensor", 256, 32])
def test_an_even_codebook_is_the_uniform_quantiser(levels: int, rows: str | int) -> None:
    w = weights()
    assert torch.equal(
        decode(encode_points(w, grid(levels), rows)), quantize_uniform(w, levels=levels, rows=rows)
    )


def test_starts_by_hand() -> None:
    u = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0])
    assert start_points(u, 3, "uniform").tolist() == [0, 0.5, 1]
    assert start_points(u, 3, "quantile").tolist() == pytest.approx([0, 0.2, 1])
    assert start_points(u, 2, "kmeans").tolist() == pytest.approx([0.1, 0.95])


@pytest.mark.parametrize("levels", [1, 2, 5, 16, 256])
def test_quantiles_are_those_of_torch(levels: int) -> None:
    u = torch.rand(1001)
    expected = torch.quantile(u.double(), torch.linspace(0, 1, levels, dtype=torch.float64))
    torch.testing.assert_close(start_points(u, levels, "quantile"), expected.float())


def test_kmeans_has_the_smallest_error() -> None:
    w = weights(100_000)
    errors = {}
    for start in ("uniform", "quantile", "kmeans"):
        points = start_points(scaled_values(w, 256), 4, start)
        q = decode(encode_points(w, points, 256))
        errors[start] = float((q - w).square().sum() / w.square().sum())
    assert errors["kmeans"] < 0.14
    assert 2 * errors["kmeans"] < min(errors["uniform"], errors["quantile"])


def test_kmeans_is_a_fixed_point_of_itself() -> None:
    u = torch.cat([torch.full((50,), 0.2), torch.full((50,), 0.8)])
    points = start_points(u, 4, "kmeans")
    assert {round(float(p), 6) for p in points} == {0.2, 0.8}
    assert (points.diff() >= 0).all()


@pytest.mark.parametrize("start", ["uniform", "quantile", "kmeans"])
def test_degenerate_tensors(start: str) -> None:
    for w in (torch.ones(10), torch.zeros(3), torch.tensor([2.0]), torch.tensor([-1e-12, 1e-12])):
        codes = encode_points(w, start_points(scaled_values(w, 256), 4, start), 256)
        torch.testing.assert_close(decode(codes), w, rtol=1e-6, atol=0)


def test_errors() -> None:
    with pytest.raises(EsnacError, match="uniform, quantile or kmeans"):
        start_points(torch.rand(3), 2, "random")  # type: ignore[arg-type]
    with pytest.raises(EsnacError, match="1 to 256"):
        start_points(torch.rand(3), 300, "kmeans")
    with pytest.raises(EsnacError, match="1 to 256 finite"):
        encode_points(torch.rand(3), torch.tensor([0.0, float("nan")]), "tensor")
    with pytest.raises(EsnacError, match="infinities"):
        encode_points(torch.tensor([0.0, float("inf")]), torch.tensor([0.0, 1.0]), "tensor")
