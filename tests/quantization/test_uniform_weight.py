from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from esnac.errors import EsnacError
from esnac.quantization.attach import Plan, attach, masters, weight_codes
from esnac.quantization.buckets import cut, fit_scale, join
from esnac.quantization.codes import decode
from esnac.quantization.uniform import quantize_uniform
from esnac.quantization.uniform_weight import UniformSettings, UniformWeight


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Weights and targets, float64."""
    values = torch.randn(2, *shape, dtype=torch.float64, generator=generator(0))
    return values[0], values[1]


def gradient(settings: UniformSettings, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of 1/2 |Q(w) - target|^2: that at Q(w), and that which reaches w."""
    master = weight.clone().requires_grad_()
    value = UniformWeight(settings)(master)
    (value - target).square().sum().mul(0.5).backward()
    assert master.grad is not None
    return (value - target).detach(), master.grad


def test_straight_through_is_the_gradient_at_the_quantised_weight() -> None:
    weight, target = (
        torch.randn(3, 100, dtype=torch.float64, generator=generator(i)) for i in (0, 1)
    )
    at_value, at_master = gradient(UniformSettings(2, rows=64), weight, target)
    assert torch.equal(at_value, at_master)


def test_clip_keeps_within_one_and_passes_nothing_outside() -> None:
    weight = torch.tensor([-2.0, -1.0, -0.4, 0.2, 1.0, 3.0])
    settings = UniformSettings(1, rows="tensor", gradient="clip")
    value = UniformWeight(settings)(weight)
    assert value.tolist() == [-1, -1, -1, 1, 1, 1]
    at_value, at_master = gradient(settings, weight, torch.zeros(6))
    assert torch.equal(at_master, at_value * torch.tensor([0.0, 1, 1, 1, 1, 0]))


@pytest.mark.parametrize("rows", ["tensor", "channel", 32])
def test_the_exact_gradient_has_the_closed_form(rows: str | int) -> None:
    """g + (onehot(argmax) - onehot(argmin)) sum g (qhat - u), row by row."""
    weight, target = (
        torch.randn(3, 33, dtype=torch.float64, generator=generator(i)) for i in (0, 1)
    )
    at_value, at_master = gradient(UniformSettings(2, rows, gradient="exact"), weight, target)
    expected = at_value.clone().reshape(-1)
    length = {"tensor": 99, "channel": 33}.get(str(rows), 32)
    for start in range(0, 99, length):
        w, g = (x.reshape(-1)[start : start + length] for x in (weight, at_value))
        low, high = w.min(), w.max()
        u = (w - low) / (high - low) if len(w) > 1 else w * 0
        total = (g * ((u * 3).round() / 3 - u)).sum()
        expected[start + w.argmax()] += total
        expected[start + w.argmin()] -= total
    torch.testing.assert_close(at_master.reshape(-1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
@pytest.mark.parametrize("where", ["largest", "last"])
def test_the_exact_gradient_agrees_with_a_finite_difference(scaling: str, where: str) -> None:
    weight, target = pair(70)
    if where == "last":  # whose copies fill the short last row
        weight[-1] = 4.0
    settings = UniformSettings(3, 64, scaling, gradient="exact")
    _, found = gradient(settings, weight, target)
    levels = UniformWeight(settings).levels
    value = quantize_uniform(weight, levels=levels, rows=64, scaling=scaling)
    # Straight-through: the distance that rounding moves a weight, in units of the scale, is fixed.
    pieces = cut(weight, 64)
    moved = (cut(value, 64) - pieces) / fit_scale(pieces, scaling)[0]
    i, h = int(weight[64:].abs().argmax()) + 64, 1e-4

    def loss(shift: float) -> float:
        pieces = cut(weight + shift * one_hot(torch.tensor(i), 70), 64)
        value = join(pieces + fit_scale(pieces, scaling)[0] * moved, weight.shape)
        return (value - target).square().sum().item() / 2

    assert abs(found[i].item() - (loss(h) - loss(-h)) / (2 * h)) < 1e-6


def test_stochastic_rounding_is_nearest_in_evaluation() -> None:
    weight = torch.randn(1000, generator=generator(0))
    quantizer = UniformWeight(UniformSettings(2, rounding="stochastic"))
    torch.manual_seed(0)
    first, second = quantizer(weight), quantizer(weight)
    torch.manual_seed(0)
    assert torch.equal(quantizer(weight), first)
    assert not torch.equal(first, second)
    quantizer.eval()
    assert torch.equal(quantizer(weight), decode(quantizer.codes(weight)))


@pytest.mark.parametrize("scaling", ["linear", "absmax", "absnorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_what_is_computed_with(scaling: str, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 71, generator=generator(0)).to(dtype)
    quantizer = UniformWeight(UniformSettings(3, 64, scaling))
    value = quantizer(weight)
    assert value.dtype == dtype
    assert torch.equal(decode(quantizer.codes(weight)).to(dtype), value)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )


def test_a_parametrization_equals_projecting_and_restoring_by_hand() -> None:
    names = ["0.weight", "3.weight", "7.weight"]
    images = torch.randn(200, 16, 1, 8, 8, generator=generator(1))
    labels = torch.randint(10, (200, 16), generator=generator(2))
    ours, by_hand = net(), net()
    attach(ours, Plan(dict.fromkeys(names, UniformSettings(2))))
    how = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 2.2e-4}
    optimizers = [torch.optim.SGD(model.parameters(), **how) for model in (ours, by_hand)]
    weights = [by_hand.get_parameter(name) for name in names]
    for step in range(200):
        optimizers[0].zero_grad()
        cross_entropy(ours(images[step]), labels[step]).backward()
        optimizers[0].step()
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.data.copy_(quantize_uniform(weight, levels=4, rows=256))
        optimizers[1].zero_grad()
        cross_entropy(by_hand(images[step]), labels[step]).backward()
        for weight, master in zip(weights, kept, strict=True):
            weight.data.copy_(master)
        optimizers[1].step()
    for name, master in masters(ours).items():
        assert torch.equal(master, by_hand.get_parameter(name))
        assert torch.equal(
            decode(weight_codes(ours)[name]), quantize_uniform(master, levels=4, rows=256)
        )
    assert torch.equal(ours[4].running_var, by_hand[4].running_var)


@pytest.mark.parametrize("bits", [0, 0.5, 9, 33])
def test_bits_that_are_none(bits: float) -> None:
    with pytest.raises(EsnacError, match="bits must be bits from 1 to 8"):
        UniformSettings(bits)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scaling", "log", "scaling must be linear or absmax or absnorm"),
        ("gradient", "none", "gradient must be ste or exact or clip"),
        ("rounding", "up", "rounding must be nearest or stochastic"),
        ("rows", 0, "bucket size"),
    ],
)
def test_settings_that_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(EsnacError, match=message):
        UniformSettings(**{key: value})
