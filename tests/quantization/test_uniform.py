from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esnac.errors import EsnacError
from esnac.quantization.buckets import cut
from esnac.quantization.codes import decode, spread
from esnac.quantization.uniform import encode_uniform, grid, levels_of, quantize_uniform

ROWS = ["tensor", 256, 32]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ranges(w: Tensor, rows: str | int) -> Tensor:
    pieces = cut(w, rows)
    alpha = pieces.amax(1, keepdim=True) - pieces.amin(1, keepdim=True)
    return spread(alpha, tuple(w.shape), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_error_is_half_a_step_at_most(bits: int, rows: str | int, dtype: torch.dtype) -> None:
    w = normal(5000, dtype=dtype)
    error = (quantize_uniform(w, levels=2**bits, rows=rows) - w).abs()
    bound = ranges(w, rows) / (2 * (2**bits - 1))
    assert 0.9 < (error / bound).max() <= 1 + 1e-5


@pytest.mark.parametrize("scaling", ["absmax", "absnorm"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_error_with_a_sign(bits: int, scaling: str) -> None:
    """s = 2**(bits - 1) magnitudes, so steps of 1 / (s - 1); the sign is kept, 0 stays 0."""
    w = normal(5000)
    w[::7] = 0
    codes = encode_uniform(w, levels=levels_of(bits, scaling), rows=256, scaling=scaling)
    assert codes.offset is None
    q = decode(codes)
    bound = spread(codes.scale, (5000,), 256) / (2 * (2 ** (bits - 1) - 1))
    assert ((q - w).abs() / bound).max() <= 1 + 1e-5
    assert not q[::7].any()
    assert (q * w >= 0).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_values_and_both_ends_kept(bits: int, rows: str | int) -> None:
    w = normal(5000)
    q = quantize_uniform(w, levels=2**bits, rows=rows)
    before, after = cut(w, rows), cut(q, rows)
    assert max(len(row.unique()) for row in after) <= 2**bits
    torch.testing.assert_close(after.amin(1), before.amin(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(after.amax(1), before.amax(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_idempotent_with_any_tail(count: int, bits: int) -> None:
    q = quantize_uniform(normal(count), levels=2**bits, rows=256)
    again = quantize_uniform(q, levels=2**bits, rows=256)
    assert ((again - q).abs() <= 1e-6 * ranges(q, 256)).all()


@pytest.mark.parametrize("scales", ["float32", "float16"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
@pytest.mark.parametrize("rows", [*ROWS, "channel"])
@pytest.mark.parametrize("levels", [3, 5, 255])
def test_the_fast_way_gives_what_the_codes_say(
    levels: int, rows: str | int, scaling: str, rounding: str, scales: str
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        w = normal(7, 5, 3, 3).to(dtype)
        options = {"levels": levels, "rows": rows, "scaling": scaling, "rounding": rounding}
        first, second = (torch.Generator().manual_seed(3) for _ in range(2))
        codes = encode_uniform(w, **options, scales=scales, generator=first)
        fast = quantize_uniform(w, **options, scales=scales, generator=second)
        assert torch.equal(decode(codes), fast)
        assert fast.dtype == torch.float32
        assert codes.codes.dtype == torch.uint8


def test_the_gradient_is_not_recorded_and_the_weight_not_changed() -> None:
    w = normal(300).requires_grad_()
    before = w.detach().clone()
    assert not quantize_uniform(w, levels=4, rows=256).requires_grad
    encode_uniform(w, levels=4)
    assert torch.equal(w, before)


def test_scales_of_narrow_weights_are_float32() -> None:
    """With scales in bfloat16 the error would be 1.18 times half a step."""
    w = normal(5000).bfloat16()
    error = (quantize_uniform(w, levels=16, rows=256) - w.float()).abs()
    assert (error / (ranges(w.float(), 256) / 30)).max() <= 1 + 1e-5


def test_float16_scales_cost_next_to_nothing() -> None:
    w = normal(100_003)
    errors = [
        (quantize_uniform(w, levels=4, rows=256, scales=scales) - w).norm()
        for scales in ("float32", "float16")
    ]
    assert errors[1] == pytest.approx(float(errors[0]), rel=1e-3)


def test_stochastic_rounding_is_without_bias() -> None:
    """4,000 draws of 2,048 weights."""
    n, levels = 4000, 4
    w = normal(2048, dtype=torch.float64)
    pieces = cut(w, 256)
    low, alpha = pieces.amin(1, keepdim=True), ranges(w, 256).reshape(pieces.shape)
    x = (pieces - low) / alpha * (levels - 1)
    p, step = (x - x.floor()).reshape(-1), (alpha / (levels - 1)).reshape(-1)
    generator = torch.Generator().manual_seed(0)
    total, square = torch.zeros_like(w), torch.zeros_like(w)
    for _ in range(n):
        error = quantize_uniform(
            w, levels=levels, rows=256, rounding="stochastic", generator=generator
        ).sub_(w)
        assert (error.abs() < step).all()
        total += error
        square += error**2
    mean, variance = total / n, square / n
    assert (mean.abs() < 5 * step / (2 * math.sqrt(n))).all()
    clear = p * (1 - p) > 0.02
    spread_of_mean = (p * (1 - p) / n).sqrt() * step
    z = (mean / spread_of_mean)[clear]
    assert 0.95 < z.square().mean().sqrt() < 1.05
    expected = p * (1 - p) * step**2
    assert 0.97 < variance[clear].sum() / expected[clear].sum() < 1.03


def test_stochastic_noise_of_an_inner_product_is_nearly_gaussian() -> None:
    w, v = normal(1024, dtype=torch.float64), normal(1024, dtype=torch.float64, seed=1)
    generator = torch.Generator().manual_seed(0)
    many = w.expand(500, 1024).contiguous()  # one bucket per row, all rows the same
    noise = torch.cat(
        [
            (
                quantize_uniform(
                    many, levels=4, rows="channel", rounding="stochastic", generator=generator
                )
                - w
            )
            @ v
            for _ in range(40)
        ]
    )
    z = (noise - noise.mean()) / noise.std()
    assert abs(float(z.pow(3).mean())) < 0.1
    assert abs(float(z.pow(4).mean()) - 3) < 0.25


def test_the_same_generator_gives_the_same_draws() -> None:
    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return quantize_uniform(
            normal(600), levels=4, rounding="stochastic", generator=generator, rows=256
        )

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
@pytest.mark.parametrize("value", [0.0, -2.5, 1e-12, 1e30])
def test_constant_rows(scaling: str, value: float) -> None:
    for count in (1, 300):
        q = quantize_uniform(torch.full((count,), value), levels=15, rows=256, scaling=scaling)
        assert torch.isfinite(q).all()
        if scaling != "absnorm":
            assert (q == torch.tensor(value)).all()


@pytest.mark.parametrize("factor", [1e-12, 1e30])
@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
def test_range_does_not_matter(scaling: str, factor: float) -> None:
    w = normal(1000)
    plain = encode_uniform(w, levels=15, rows=256, scaling=scaling)
    moved = encode_uniform(w * factor, levels=15, rows=256, scaling=scaling)
    assert (plain.codes.int() - moved.codes.int()).abs().max() <= 1  # a rounding on the border
    assert (plain.codes != moved.codes).sum() <= 2
    assert torch.isfinite(decode(moved)).all()


def test_two_bits_with_a_sign_lose_most() -> None:
    """Relative error at 2 bits, Gaussian weights in buckets of 256."""
    w = normal(256 * 400)
    errors = {
        scaling: float((quantize_uniform(w, levels=n, rows=256, scaling=scaling) - w).norm())
        / float(w.norm())
        for scaling, n in (("linear", 4), ("absmax", 3), ("absnorm", 3))
    }
    assert errors["linear"] == pytest.approx(0.543, abs=0.02)
    assert errors["absmax"] == pytest.approx(0.819, abs=0.02)
    assert errors["absnorm"] == 1
    with pytest.raises(EsnacError, match="almost every weight to 0"):
        levels_of(2, "absnorm")
    with pytest.raises(EsnacError, match="almost every weight to 0"):
        levels_of(1, "absmax")
    with pytest.warns(UserWarning, match="-1, 0 and 1"):
        assert levels_of(2, "absmax") == 3


@pytest.mark.parametrize(
    ("bits", "linear", "absmax"),
    [(1, 2, None), (2.4, 5, 5), (2.5, 5, 5), (math.log2(6), 6, 5), (3, 8, 7), (8, 256, 255)],
)
def test_levels_of_bits(bits: float, linear: int, absmax: int | None) -> None:
    assert levels_of(bits) == linear
    if absmax:
        assert levels_of(bits, "absmax") == absmax


@pytest.mark.parametrize("bits", [0, 33, -1, 0.5, math.nan])
def test_bits_that_make_no_sense(bits: float) -> None:
    with pytest.raises(EsnacError, match="bits must be from 1 to 8"):
        levels_of(bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "from 2 to 256"),
        ({"levels": 257}, "from 2 to 256"),
        ({"levels": 4, "scaling": "absmax"}, "odd number"),
        ({"levels": 4, "rounding": "up"}, "nearest or stochastic"),
        ({"levels": 4, "rows": 0}, "bucket size"),
    ],
)
def test_bad_settings(options: dict[str, object], message: str) -> None:
    for function in (quantize_uniform, encode_uniform):
        with pytest.raises(EsnacError, match=message):
            function(torch.ones(4), **options)


def test_weights_that_are_not_finite() -> None:
    for value in (math.inf, math.nan):
        with pytest.raises(EsnacError, match="infinities, NaN"):
            encode_uniform(torch.tensor([1.0, value]), levels=4)


def test_grid() -> None:
    assert grid(4).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert grid(5, "absmax").tolist() == [-1, -0.5, 0, 0.5, 1]
