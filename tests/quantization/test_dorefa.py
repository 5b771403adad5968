from __future__ import annotations

import pytest
import torch

from esnac.errors import EsnacError
from esnac.quantization.codes import decode
from esnac.quantization.dorefa import (
    DoReFaActivation,
    DoReFaActivationSettings,
    DoReFaWeight,
    DoReFaWeightSettings,
)

VARIANTS = ["classic", "mean", "row"]


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_two_bits_of_the_mean_variant_have_four_levels_without_zero() -> None:
    weight = weights(40, 9)
    value = DoReFaWeight(DoReFaWeightSettings(2, "mean"))(weight)
    mean = weight.tanh().abs().mean()
    expected = mean * torch.tensor([-1, -1 / 3, 1 / 3, 1])
    torch.testing.assert_close(value.unique(), expected)
    # To the nearest: the borders lie at 0 and at +-2/3 of the mean.
    assert torch.equal(value > 0.9 * mean, weight.tanh() > mean * 2 / 3)


def test_the_row_variant_centres_rows_and_reaches_their_extremes() -> None:
    weight = weights(5, 200)
    value = DoReFaWeight(DoReFaWeightSettings(8, "row"))(weight)
    t = weight.tanh()
    centred = t - t.mean(1, keepdim=True)
    largest = centred.abs().amax(1)
    torch.testing.assert_close(value.abs().amax(1), largest)
    assert (value - centred).abs().amax(1).le(largest / 255 * 1.0001).all()


def test_the_classic_variant_lies_on_a_grid_in_minus_one_to_one() -> None:
    weight = weights(40, 9)
    value = DoReFaWeight(DoReFaWeightSettings(2, "classic"))(weight)
    torch.testing.assert_close(value.unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    t = weight.tanh()
    torch.testing.assert_close(value, 2 * ((t / t.abs().max() / 2 + 0.5) * 3).round() / 3 - 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_have_the_closed_form(variant: str) -> None:
    weight = weights(4, 6).double().requires_grad_()
    target = torch.arange(24.0).double().reshape(4, 6)
    (DoReFaWeight(DoReFaWeightSettings(2, variant))(weight) * target).sum().backward()
    t = weight.detach().tanh()
    expected = target
    if variant == "row":
        expected = target - target.mean(1, keepdim=True)
    if variant == "classic":
        largest, where = t.abs().max(), t.abs().argmax()
        expected = target / largest
        expected.view(-1)[where] -= (target * t).sum() / largest**2 * t.view(-1)[where].sign()
    torch.testing.assert_close(weight.grad, expected * (1 - t**2))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_codes_are_what_is_computed_with(bits: int, variant: str) -> None:
    weight = weights(7, 3, 3, 3)
    quantizer = DoReFaWeight(DoReFaWeightSettings(bits, variant))
    assert torch.equal(decode(quantizer.codes(weight)), quantizer(weight))
    assert len(quantizer(weight)[0].unique()) <= 2**bits


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_weights_stay_finite(variant: str) -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    value = DoReFaWeight(DoReFaWeightSettings(4, variant))(weight)
    value.sum().backward()
    assert value.isfinite().all()
    assert weight.grad.isfinite().all()


def test_activations_have_sixteen_levels_and_gradient_gain_inside() -> None:
    x = torch.linspace(-5, 15, 2001, requires_grad=True)
    quantizer = DoReFaActivation(DoReFaActivationSettings())
    value = quantizer(x)
    torch.testing.assert_close(value.unique(), torch.arange(16) / 15)
    value.sum().backward()
    inside = (x > 0) & (x < 10)
    torch.testing.assert_close(x.grad, 0.1 * inside)


@pytest.mark.parametrize("bits", [0, 33])
def test_bits_that_are_none(bits: int) -> None:
    for settings in (DoReFaWeightSettings, DoReFaActivationSettings):
        with pytest.raises(EsnacError, match="bits must be a whole number of bits from 1 to 8"):
            settings(bits)
    with pytest.raises(EsnacError, match="variant must be classic or mean or row"):
        DoReFaWeightSettings(2, "gaussian")
    with pytest.raises(EsnacError, match="gain must be above 0"):
        DoReFaActivationSettings(4, 0)
