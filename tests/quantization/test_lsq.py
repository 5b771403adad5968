from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esnac.errors import EsnacError
from esnac.quantization.codes import decode
from esnac.quantization.lsq import (
    LSQActivation,
    LSQActivationSettings,
    LSQWeight,
    LSQWeightSettings,
    first_step,
    limits,
)


def activation(bits: int, step: float, signed: bool) -> LSQActivation:
    quantizer = LSQActivation(LSQActivationSettings(bits, signed))
    with torch.no_grad():
        quantizer.raw_step.fill_(step)
    return quantizer


def test_levels_and_gradients_of_weights_worked_by_hand() -> None:
    """Two bits: -2s .. s. With s = 0.5: v/s = -6, -1.4, 0.6, 8; codes -2, -1, 1, 1."""
    weight = torch.tensor([-3.0, -0.7, 0.3, 4.0], requires_grad=True)
    quantizer = LSQWeight(LSQWeightSettings(2), weight)
    with torch.no_grad():
        quantizer.raw_step.fill_(0.5)
    value = quantizer(weight)
    assert value.tolist() == [-1, -0.5, 0.5, 0.5]
    (value * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 2, 3, 0]
    # -2 outside below, -1 + 1.4, 1 - 0.6, 1 outside above; times 1 / sqrt(4 * 1)
    expected = (1 * -2 + 2 * 0.4 + 3 * 0.4 + 4 * 1) / 2
    assert quantizer.raw_step.grad is not None
    assert abs(quantizer.raw_step.grad.item() - expected) < 1e-6


@pytest.mark.parametrize(("signed", "low", "high"), [(False, 0, 3), (True, -2, 1)])
def test_gradients_of_activations_worked_by_hand(signed: bool, low: int, high: int) -> None:
    x = torch.tensor([[-3.0, -0.7, 0.3, 0.8, 9.0], [0.1, 0.6, 1.2, 0.0, -0.1]]).double()
    x.requires_grad_()
    quantizer = activation(2, 0.5, signed).double()
    value = quantizer(x)
    grad = torch.arange(1.0, 11.0).double().reshape(2, 5)
    (value * grad).sum().backward()
    steps = x.detach() / 0.5
    inside = (steps > low) & (steps < high)
    clamped = steps.clamp(low, high)
    assert torch.equal(value, clamped.round() * 0.5)
    assert torch.equal(x.grad, grad * inside)
    slope = torch.where(inside, clamped.round() - steps, clamped)
    expected = (grad * slope).sum() / math.sqrt(5 * high)  # 5 features, whatever the batch
    assert abs(quantizer.raw_step.grad - expected) < 1e-6 * expected.abs()


def test_the_gradient_of_the_step_is_that_of_the_piecewise_linear_part() -> None:
    """With the rounding residual fixed: a central difference in s."""
    x = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantizer, s, h = activation(3, 0.25, signed=True).double(), 0.25, 1e-6
    quantizer(x).square().sum().backward()
    steps = x / s
    inside = (steps > -4) & (steps < 3)
    residual = steps.clamp(-4, 3).round() - steps

    def loss(step: float) -> float:
        moved = torch.where(inside, x + residual * step, steps.clamp(-4, 3) * step)
        return moved.square().sum().item()

    difference = (loss(s + h) - loss(s - h)) / (2 * h) / math.sqrt(50 * 3)
    assert abs(quantizer.raw_step.grad.item() - difference) < 1e-6 * abs(difference)


@pytest.mark.parametrize("rows", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_what_is_computed_with(bits: int, rows: str) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = LSQWeight(LSQWeightSettings(bits, rows), weight)
    value, codes = quantizer(weight), quantizer.codes(weight)
    assert torch.equal(decode(codes), value)
    assert codes.levels == 2**bits
    groups = value.flatten(1) if rows == "channel" else value.reshape(1, -1)
    assert max(len(group.unique()) for group in groups) <= 2**bits
    # Starts at 2 mean|w| / sqrt(Q_p).
    mean = weight.flatten(1).abs().mean(1) if rows == "channel" else weight.abs().mean()
    expected = 2 * mean / math.sqrt(2 ** (bits - 1) - 1)
    torch.testing.assert_close(quantizer.step, expected.reshape(-1))


def test_activations_start_from_the_first_batch() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    signed, unsigned = (LSQActivation(LSQActivationSettings(4)) for _ in range(2))
    signed(x)
    unsigned(x.relu())
    assert (signed.low, signed.high) == (-8, 7)
    assert (unsigned.low, unsigned.high) == (0, 15)
    torch.testing.assert_close(signed.step, 2 * x.abs().mean() / math.sqrt(7))
    torch.testing.assert_close(unsigned.step, 2 * x.relu().mean() / math.sqrt(15))
    before = unsigned.step.clone()
    codes = unsigned(x.relu() * 3) / before
    assert torch.equal(unsigned.step, before)
    assert codes.min() >= 0
    assert codes.max() == 15
    torch.testing.assert_close(codes, codes.round())


def test_evaluation_before_training_is_refused() -> None:
    quantizer = LSQActivation(LSQActivationSettings(4))
    quantizer.layer = "conv1"
    with pytest.raises(EsnacError, match="layer 'conv1' has seen no data"):
        quantizer.eval()(torch.ones(2, 3))
    zeros = torch.zeros(2, 3)
    assert torch.equal(quantizer.train()(zeros), zeros)  # and waits for a batch that tells more
    with pytest.raises(EsnacError, match="only zeros"):
        quantizer.eval()(zeros)
    quantizer.train()(torch.ones(2, 3))
    assert torch.equal(quantizer.eval()(zeros), zeros)


def test_steps_stay_positive_under_noise() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = torch.nn.Parameter(0.01 * noise(20, 20))
    quantizer, inputs = LSQWeight(LSQWeightSettings(2), weight), activation(2, 0.01, True)
    parameters = [weight, *quantizer.parameters(), *inputs.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    raw = []
    for _ in range(200):
        optimizer.zero_grad()
        out = inputs(noise(8, 20) @ quantizer(weight))
        (out * noise(8, 20)).sum().backward()
        optimizer.step()
        raw.append(quantizer.raw_step.item())
        assert quantizer.step > 0
        assert inputs.step > 0
        assert out.isfinite().all()
    assert min(raw) < 0 < max(raw)  # noise that would have turned it


def test_zeros_give_no_nan() -> None:
    weight = torch.zeros(4, 4, requires_grad=True)
    quantizer = LSQWeight(LSQWeightSettings(4), weight)
    quantizer(weight).sum().backward()
    assert quantizer.raw_step.grad.isfinite().all()
    assert first_step(torch.zeros(2, 3), 7).tolist() == [1, 1]
    inputs = activation(4, 0.1, signed=False)
    inputs(torch.zeros(2, 3)).sum().backward()
    assert inputs.raw_step.grad.item() == 0


def test_a_state_dict_keeps_step_and_sign() -> None:
    trained, fresh = (LSQActivation(LSQActivationSettings(3)) for _ in range(2))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    trained(x)
    fresh(x.relu())  # started already, and otherwise
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.eval()(x), trained.eval()(x))
    assert (fresh.low, fresh.high) == (-4, 3)


def test_channels_last_and_narrow_floats() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    quantizer = activation(4, 0.2, signed=True)
    value = quantizer(x)
    assert value.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(value, quantizer(x.contiguous()))
    assert quantizer(x.bfloat16()).dtype == torch.float32
    grads = []
    for inputs in (x, x.contiguous()):
        quantizer.zero_grad()
        (quantizer(inputs) * torch.arange(8.0).reshape(1, 8, 1, 1)).sum().backward()
        grads.append(quantizer.raw_step.grad.clone())
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("bits", [0, 1, 9, 33])
def test_bits_of_weights_that_are_none(bits: int) -> None:
    with pytest.raises(EsnacError, match="bits must be a whole number of bits from 2 to 8"):
        LSQWeightSettings(bits)


def test_bits_of_activations_that_are_none() -> None:
    for bits in (0, 33):
        with pytest.raises(EsnacError, match="from 1 to 8"):
            LSQActivationSettings(bits)
    assert limits(1, signed=False) == (0, 1)
    with pytest.raises(EsnacError, match="negative values"):
        LSQActivation(LSQActivationSettings(1))(torch.randn(4, 4))
