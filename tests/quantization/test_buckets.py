from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.buckets import cut, fit_scale, join, scaled


def test_a_short_last_row_is_filled_with_its_last_value() -> None:
    w = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert cut(w, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]
    assert torch.equal(join(cut(w, 4), w.shape), w)


@pytest.mark.parametrize(
    ("rows", "shape"), [("tensor", (1, 12)), ("channel", (3, 4)), (5, (3, 5)), (256, (1, 12))]
)
def test_rows(rows: str | int, shape: tuple[int, int]) -> None:
    """A tensor shorter than a bucket is one row of its own length."""
    assert cut(torch.randn(3, 2, 2), rows).shape == shape


def test_scales_by_hand() -> None:
    rows = torch.tensor([[-3.0, 0.0, 4.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    scale, offset = fit_scale(rows, "linear")
    assert offset is not None
    assert scale.flatten().tolist() == [7, 1, 1]
    assert offset.flatten().tolist() == [-3, 1, 0]
    assert fit_scale(rows, "absmax")[0].flatten().tolist() == [4, 1, 1]
    assert fit_scale(rows, "absmax")[1] is None
    assert fit_scale(rows, "absnorm")[0].flatten().tolist() == pytest.approx([5, 3**0.5, 1])
    u = scaled(rows, scale, offset)
    assert u[0].tolist() == pytest.approx([0, 3 / 7, 1])
    assert not u[1:].any()


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e30])
@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
def test_the_scale_follows_the_weights_however_small_or_large(factor: float, scaling: str) -> None:
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    plain, _ = fit_scale(rows, scaling)
    moved, _ = fit_scale(rows * factor, scaling)
    torch.testing.assert_close(moved / factor, plain, rtol=1e-6, atol=0)


def test_float16_scales() -> None:
    rows = torch.randn(8, 32)
    scale, offset = fit_scale(rows, "linear", "float16")
    assert offset is not None
    assert torch.equal(scale.half().float(), scale)
    assert torch.equal(offset.half().float(), offset)
    with pytest.raises(EsnacError, match="keep them as float32"):
        fit_scale(rows * 1e6, "linear", "float16")
    with pytest.raises(EsnacError, match="keep them as float32"):
        fit_scale(rows * 1e-9, "linear", "float16")


def test_unknown_scaling() -> None:
    with pytest.raises(EsnacError, match="linear, absmax, absnorm"):
        fit_scale(torch.ones(1, 1), "max")  # type: ignore[arg-type]
