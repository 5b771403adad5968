from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.codes import decode
from esnac.quantization.minmax import (
    MinMaxActivation,
    MinMaxActivationSettings,
    MinMaxWeight,
    MinMaxWeightSettings,
)


def test_zero_is_exact_in_every_row() -> None:
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 1] = 0
    weight[3] += 5  # all positive: the range is widened to hold 0
    weight[3, 1] = 0
    quantizer = MinMaxWeight(MinMaxWeightSettings(4))
    value = quantizer(weight)
    assert not value[:, 1].any()
    assert all(len(row.unique()) <= 16 for row in value)
    assert torch.equal(decode(quantizer.codes(weight)), value)
    ranges = weight.flatten(1).amax(1).clamp_min(0) - weight.flatten(1).amin(1).clamp_max(0)
    error = (value - weight).abs().flatten(1).amax(1)
    assert (error <= ranges / 15 * 1.0001).all()


@pytest.mark.parametrize(("bits", "mean"), [(2.4, 5.02), (2.5, 5.30)])
def test_fractions_of_bits_give_five_to_six_levels(bits: float, mean: float) -> None:
    weight = torch.randn(4000, 1280, generator=torch.Generator().manual_seed(0))
    quantizer = MinMaxWeight(MinMaxWeightSettings(bits))
    codes = quantizer.codes(weight)
    assert codes.levels == 6
    counts = torch.tensor([len(row.unique()) for row in codes.codes], dtype=torch.float32)
    assert set(counts.tolist()) <= {5, 6}
    assert abs(counts.mean() - mean) < 0.02


def test_the_gradient_passes_through() -> None:
    weight = torch.randn(4, 9, requires_grad=True)
    MinMaxWeight(MinMaxWeightSettings(4))(weight).sum().backward()
    assert weight.grad.eq(1).all()


def test_constant_and_zero_rows() -> None:
    weight = torch.tensor([[0.0, 0.0], [2.0, 2.0], [-3.0, -3.0]])
    assert torch.equal(MinMaxWeight(MinMaxWeightSettings(4))(weight), weight)


def test_ranges_are_corrected_moving_averages() -> None:
    quantizer = MinMaxActivation(MinMaxActivationSettings(4, decay=0.9))
    with pytest.raises(EsnacError, match="has seen no data"):
        quantizer.eval()(torch.ones(2))
    quantizer.train()
    quantizer(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(torch.stack(quantizer.range), torch.tensor([-1.0, 2.0]))
    quantizer(torch.tensor([-3.0, 4.0]))
    # (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.81)
    expected = (0.09 * torch.tensor([-1.0, 2.0]) + 0.1 * torch.tensor([-3.0, 4.0])) / 0.19
    torch.testing.assert_close(torch.stack(quantizer.range), expected)
    before = quantizer.extremes.clone()
    quantizer.eval()(torch.tensor([9.0]))
    assert torch.equal(quantizer.extremes, before)


def test_activations_have_sixteen_levels_with_zero_and_gradient_inside() -> None:
    quantizer = MinMaxActivation(MinMaxActivationSettings())
    quantizer(torch.tensor([-1.0, 2.0]))
    x = torch.linspace(-3, 4, 701, requires_grad=True)
    value = quantizer.eval()(x)
    assert len(value.unique()) == 16
    assert (value == 0).any()
    value.sum().backward()
    assert x.grad[x < -1.2].eq(0).all()
    assert x.grad[(x > -0.9) & (x < 1.9)].eq(1).all()
    assert x.grad[x > 2.2].eq(0).all()


@pytest.mark.parametrize("bits", [0, 33])
def test_bits_that_are_none(bits: int) -> None:
    for settings in (MinMaxWeightSettings, MinMaxActivationSettings):
        with pytest.raises(EsnacError, match="from 1 to 8"):
            settings(bits)
    with pytest.raises(EsnacError, match="decay must be in"):
        MinMaxActivationSettings(4, decay=1.0)
